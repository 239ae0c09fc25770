package sandbox

import (
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// pidNamespace names the namespace that a process lives in, such as
// "pid:[4026531836]".
func pidNamespace(pid int) (string, error) {
	return os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
}

// deletedMax bounds what is remembered of files that were met.
const deletedMax = 64 << 10

// deleted adds up the files on some devices that have no name any more and that
// processes of a namespace hold open, in steps of bounded length: no walk meets
// them. A file that is only mapped, or in flight in a socket, is not found.
type deleted struct {
	namespace string
	devs      map[uint64]bool
	procs     *os.File // /proc
	pids      []string // read and not looked at
	open      *os.File // the descriptors of one process
	seen      map[[2]uint64]bool
	bytes     int64
}

// step looks at about n processes and descriptors and reports whether there is
// more to do.
func (d *deleted) step(n int) (more bool, err error) {
	if d.procs == nil {
		if d.procs, err = os.Open("/proc"); err != nil {
			return false, err
		}
		d.seen = make(map[[2]uint64]bool)
	}
	for ; n > 0; n-- {
		if d.open != nil {
			if d.files() {
				_ = d.open.Close()
				d.open = nil
			}
			continue
		}
		if len(d.pids) == 0 {
			if d.pids, err = d.procs.Readdirnames(64); errors.Is(err, io.EOF) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
		pid := d.pids[0]
		d.pids = d.pids[1:]
		if pid[0] >= '1' && pid[0] <= '9' {
			d.enter(pid)
		}
	}
	return true, nil
}

// enter opens a process's list of descriptors if it lives in the namespace. All
// is looked up below one descriptor of its, so that no other process of the
// same number is taken for it.
func (d *deleted) enter(pid string) {
	proc, err := unix.Open("/proc/"+pid, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(proc) }()
	link := make([]byte, 64)
	n, err := unix.Readlinkat(proc, "ns/pid", link)
	if err != nil || string(link[:n]) != d.namespace {
		return
	}
	if fd, err := unix.Openat(proc, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		d.open = os.NewFile(uintptr(fd), "fd")
	}
}

// files looks at some descriptors and reports whether those were the last.
func (d *deleted) files() (last bool) {
	names, err := d.open.Readdirnames(16)
	for _, name := range names {
		var st unix.Stat_t
		// The link is followed by the kernel to the open file, whatever it is
		// called; nothing is opened.
		if unix.Fstatat(int(d.open.Fd()), name, &st, 0) != nil || st.Nlink > 0 || !d.devs[st.Dev] || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		id := [2]uint64{st.Dev, st.Ino}
		if d.seen[id] {
			continue
		}
		if len(d.seen) < deletedMax {
			d.seen[id] = true
		}
		d.bytes += max(st.Blocks*512, fileCost)
	}
	return err != nil
}

func (d *deleted) close() {
	if d.open != nil {
		_ = d.open.Close()
	}
	if d.procs != nil {
		_ = d.procs.Close()
	}
	d.open, d.procs, d.pids, d.seen = nil, nil, nil, nil
}
