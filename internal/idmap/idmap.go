// Package idmap makes id-mapped mounts: a directory seen through one has other
// owners than on its disk.
//
// It owns the system calls and nothing else: who is mapped to whom, where
// mounts lie and how long, is its callers' business. It promises that a mount
// that it makes honours no setuid bit and no device, that one pair of ids
// changes places and every other id stays what it is, and that root is never
// one of the pair: whoever may make files as root on a disk may make setuid
// files there.
package idmap

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is what Namespace, Mount and Check return where the kernel, the
// file system or the process's rights don't allow it.
var ErrUnsupported = errors.New("id-mapped mounts are not possible")

// Pair is two ids that change places: what Disk owns on the disk belongs,
// seen through the mount, to Host, and the reverse.
type Pair struct{ Disk, Host uint32 }

// Namespace makes a user namespace that says how owners are mapped. It takes a
// few milliseconds and may be used for any number of mounts; it lives as long
// as the file, or a mount, does.
func Namespace(uid, gid Pair) (*os.File, error) {
	for _, p := range []Pair{uid, gid} {
		if p.Disk == 0 || p.Host == 0 {
			return nil, errors.New("making a user namespace: root's ids are never mapped")
		}
	}
	// The child is stopped before its first instruction: it only has the
	// namespace. Its tracer is this thread, which must stay until it is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess("/proc/self/exe", []string{"stromboli-idmap"}, &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: uid.extents(), GidMappings: gid.extents(), GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", unsupported(err))
	}
	ns, err := os.Open("/proc/" + strconv.Itoa(child.Pid) + "/ns/user")
	killed := child.Kill()
	_, waited := child.Wait()
	if err := errors.Join(err, killed, waited); err != nil {
		if ns != nil {
			_ = ns.Close()
		}
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	return ns, nil
}

// extents is the pair as the kernel takes a map: every id but the last, which
// is none.
func (p Pair) extents() []syscall.SysProcIDMap {
	if p.Disk == p.Host {
		return []syscall.SysProcIDMap{{Size: math.MaxUint32}}
	}
	low, high := int(min(p.Disk, p.Host)), int(max(p.Disk, p.Host))
	var out []syscall.SysProcIDMap
	for _, m := range []syscall.SysProcIDMap{
		{ContainerID: 0, HostID: 0, Size: low},
		{ContainerID: low, HostID: high, Size: 1},
		{ContainerID: low + 1, HostID: low + 1, Size: high - low - 1},
		{ContainerID: high, HostID: low, Size: 1},
		{ContainerID: high + 1, HostID: high + 1, Size: math.MaxUint32 - high - 1},
	} {
		if m.Size > 0 {
			out = append(out, m)
		}
	}
	return out
}

// Mount mounts what source leads to, a directory or a file with all that is
// mounted below it, at target, a thing of the same kind. It stays until
// Unmount, whatever becomes of this process.
func Mount(source, target string, ns *os.File) error {
	fd, err := detached(source, ns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting %s: %w", source, unsupported(err))
	}
	return nil
}

// Check reports whether Mount could mount a source. It leaves nothing behind.
func Check(source string, ns *os.File) error {
	fd, err := detached(source, ns)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// detached is a mount that no path leads to yet, and that ends with its
// descriptor.
func detached(source string, ns *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("mounting %s: %w", source, unsupported(err))
	}
	// Private: what is mounted there later is not for those who have this one.
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Propagation: unix.MS_PRIVATE, Userns_fd: uint64(ns.Fd()),
	})
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("mapping the owners in %s: %w", source, unsupported(err))
	}
	return fd, nil
}

// unsupported tells what can't be done here from what failed this time, such as
// for too many namespaces or mounts.
func unsupported(err error) error {
	for _, errno := range []syscall.Errno{unix.ENOSYS, unix.EINVAL, unix.EPERM, unix.EOPNOTSUPP} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return err
}

// Below lists the mount points at dir and below it, in this process's mount
// namespace, innermost first.
func Below(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for mounts: %w", err)
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking for mounts: %w", err)
	}
	return below(string(text), dir), nil
}

func below(mountinfo, dir string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var out []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := unescape.Replace(f[4]); at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") {
			out = append(out, at)
		}
	}
	slices.Reverse(out) // the kernel lists a mount before those on it
	return out
}

// UnmountBelow takes away every mount at dir and below it. Who has something
// open there keeps it; no path leads there any more on return.
func UnmountBelow(dir string) error {
	for {
		mounts, err := Below(dir)
		if err != nil || len(mounts) == 0 {
			return err
		}
		for _, at := range mounts {
			if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmounting %s: %w", at, err)
			}
		}
	}
}

// SameMounts reports whether a process has this one's mount namespace: what one
// of them mounts the other sees.
func SameMounts(pid int) (bool, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, err
	}
	other, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	return own == other, err
}
