package setup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is what this machine is like, as far as sandboxes depend on it.
type Host struct {
	Kernel   string // release, such as 6.1.0-13-amd64
	CgroupV2 bool   // the unified hierarchy alone
	Hybrid   bool   // v1 controllers with an empty v2 hierarchy beside them
	SELinux  string // "", "permissive" or "enforcing"

	UID  int
	User string
	// SubUIDs and SubGIDs are how many subordinate ids this user has;
	// unknown where a directory service keeps them.
	SubUIDs, SubGIDs int
	SubIDsElsewhere  bool
	IDMapTools       bool   // newuidmap and newgidmap are installed
	Inotify          int    // instances that one user may have; 0: not known
	NoUserNamespaces string // the file that switches them off, if one does

	Mounts string // /proc/self/mountinfo

	Files      uint64 // open files that this process may have, hard limit
	Now        time.Time
	ClockState ClockState
}

// ClockState is what the kernel knows of its clock.
type ClockState int

// The states of the clock.
const (
	ClockUnknown ClockState = iota
	ClockSynced
	ClockFree // no time service disciplines it
)

// ReadHost looks at the host whose files lie below root, as this process sees
// it. What can't be read is left at its zero value.
func ReadHost(root string, env []string) Host {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	h := Host{
		Kernel: read("proc/sys/kernel/osrelease"), UID: os.Getuid(), Now: time.Now(),
		CgroupV2: exists(root, "sys/fs/cgroup/cgroup.controllers"),
		Hybrid:   exists(root, "sys/fs/cgroup/unified/cgroup.controllers"),
	}
	if v := read("sys/fs/selinux/enforce"); v != "" {
		h.SELinux = map[bool]string{true: "enforcing", false: "permissive"}[v == "1"]
	}
	h.User = userName(read("etc/passwd"), h.UID)
	names := []string{h.User, strconv.Itoa(h.UID)}
	h.SubUIDs, h.SubGIDs = subIDs(read("etc/subuid"), names), subIDs(read("etc/subgid"), names)
	for line := range strings.Lines(read("etc/nsswitch.conf")) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), "subid:"); found && strings.TrimSpace(v) != "files" {
			h.SubIDsElsewhere = true
		}
	}
	_, uidmap := lookPath(env, "newuidmap")
	_, gidmap := lookPath(env, "newgidmap")
	h.IDMapTools = uidmap && gidmap
	for _, name := range []string{"proc/sys/user/max_user_namespaces", "proc/sys/kernel/unprivileged_userns_clone"} {
		if read(name) == "0" {
			h.NoUserNamespaces = "/" + name
		}
	}
	h.Inotify, _ = strconv.Atoi(read("proc/sys/fs/inotify/max_user_instances"))
	h.Mounts = read("proc/self/mountinfo")
	h.Files = openFiles(read("proc/self/limits"))
	h.ClockState = clockState()
	return h
}

func exists(root, name string) bool {
	_, err := os.Stat(filepath.Join(root, name))
	return err == nil
}

func userName(passwd string, uid int) string {
	for line := range strings.Lines(passwd) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == strconv.Itoa(uid) {
			return f[0]
		}
	}
	return strconv.Itoa(uid)
}

// subIDs adds up the ranges of a subuid or subgid file that are for one of
// the names.
func subIDs(text string, names []string) int {
	total := 0
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || !slices.Contains(names, f[0]) {
			continue
		}
		if n, err := strconv.Atoi(f[2]); err == nil && n > 0 {
			total += n
		}
	}
	return total
}

// openFiles takes the hard limit out of /proc/self/limits; 0: not said.
func openFiles(limits string) uint64 {
	for line := range strings.Lines(limits) {
		rest, found := strings.CutPrefix(line, "Max open files")
		if f := strings.Fields(rest); found && len(f) > 1 {
			if f[1] == "unlimited" {
				return 1 << 30
			}
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

func clockState() ClockState {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return ClockUnknown
	}
	if t.Status&unix.STA_UNSYNC != 0 {
		return ClockFree
	}
	return ClockSynced
}

// Space is what a file system has left.
type Space struct {
	Free   uint64 // bytes for an ordinary user
	Files  uint64 // inodes that are free; 0 where there is no such limit
	NoExec bool
	Device uint64
}

// SpaceAt looks at the file system of a path, or of the nearest directory
// above it that exists.
func SpaceAt(path string) (Space, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		up := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || up == path {
			return Space{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
		}
		path = up
	}
	s := Space{Free: st.Bavail * uint64(max(st.Bsize, 0)), NoExec: st.Flags&unix.ST_NOEXEC != 0}
	if st.Files > 0 {
		s.Files = max(st.Ffree, 1)
	}
	var id unix.Stat_t
	if unix.Stat(path, &id) == nil {
		s.Device = id.Dev
	}
	return s, nil
}

func ownerOf(info fs.FileInfo) int {
	if st, found := info.Sys().(*syscall.Stat_t); found {
		return int(st.Uid)
	}
	return -1
}
