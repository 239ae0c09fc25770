package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// fileCost is what anything costs at least: an inode is as scarce as a block.
	fileCost = 4 << 10
	// nestedDeepest is how deep directories may be nested to be measured; paths
	// of half that length are too long for every program.
	nestedDeepest = 4096
	// heldOpen is how many directories, those read last, a walk keeps open.
	heldOpen   = 8
	direntSize = 8 << 10
)

// walk adds up what directories that an agent writes into take of the disk, in
// steps of bounded length. It holds a few descriptors and, for each level of
// the directory that it reads, a name: neither the number of files nor their
// depth costs more. Nothing is opened but directories, no link is followed, and
// no other file system is entered.
//
// A file counts by its blocks, so that holes are free, and with each of its
// names in equal parts. What moves meanwhile may be counted twice or not at
// all.
type walk struct {
	roots   []string // yet to be walked
	levels  []level
	dev     uint64
	devs    map[uint64]bool // of all roots
	bytes   int64
	tooDeep bool
	spare   []byte // memory of a level that was left
}

// level is a directory on the way to the one that is read.
type level struct {
	fd       int // -1: closed meanwhile
	dev, ino uint64
	name     string // in the level above; of a root, its path
	mem      []byte // what is read into; nil at first
	buf      []byte // entries that were read and not looked at
	next     int64  // position behind the last entry that was looked at
}

func newWalk(roots ...string) *walk {
	return &walk{roots: roots, devs: make(map[uint64]bool)}
}

const openDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// step looks at about n entries and reports whether there is more to do. An
// error is that of a root, or of a directory's own listing.
func (w *walk) step(n int) (more bool, err error) {
	for ; n > 0; n-- {
		if len(w.levels) == 0 {
			if len(w.roots) == 0 {
				return false, nil
			}
			root := w.roots[0]
			w.roots = w.roots[1:]
			if err := w.enterRoot(root); err != nil {
				return true, err
			}
			continue
		}
		name, err := w.entry()
		switch {
		case err != nil:
			w.leave()
			return true, err
		case name == "":
			w.leave()
		default:
			w.look(name)
		}
	}
	return true, nil
}

// close ends a walk at any time.
func (w *walk) close() {
	for i := range w.levels {
		w.levels[i].close()
	}
	w.levels, w.roots = nil, nil
}

func (l *level) close() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
	}
	l.fd, l.mem, l.buf = -1, nil, nil
}

func (w *walk) enterRoot(path string) error {
	fd, st, err := openedDir(unix.AT_FDCWD, path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("measuring %s: %w", path, err)
	}
	w.dev = st.Dev
	w.devs[st.Dev] = true
	w.bytes += cost(&st)
	w.levels = append(w.levels, level{fd: fd, dev: st.Dev, ino: st.Ino, name: path})
	return nil
}

func openedDir(at int, name string) (fd int, st unix.Stat_t, err error) {
	if fd, err = unix.Openat(at, name, openDir, 0); err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// entry is the next name of the deepest level, "" at its end.
func (w *walk) entry() (string, error) {
	l := &w.levels[len(w.levels)-1]
	for {
		if len(l.buf) == 0 {
			if l.mem == nil {
				l.mem, w.spare = w.spare, nil
			}
			if l.mem == nil {
				l.mem = make([]byte, direntSize)
			}
			n, err := unix.ReadDirent(l.fd, l.mem)
			if errors.Is(err, unix.ENOENT) { // the directory was removed
				return "", nil
			}
			if err != nil || n <= 0 {
				return "", err
			}
			l.buf = l.mem[:n]
		}
		// struct linux_dirent64: inode, position of the next, length, type, name.
		size := int(binary.NativeEndian.Uint16(l.buf[16:]))
		l.next = int64(binary.NativeEndian.Uint64(l.buf[8:])) //nolint:gosec // as the kernel has it
		name, _, _ := bytes.Cut(l.buf[19:size], []byte{0})
		l.buf = l.buf[size:]
		if s := string(name); s != "." && s != ".." {
			return s, nil
		}
	}
}

// look counts an entry of the deepest level, and enters it if it is a
// directory. What is gone by now, or closed to us, has no more to be counted.
func (w *walk) look(name string) {
	at := w.levels[len(w.levels)-1].fd
	var st unix.Stat_t
	err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil || st.Dev != w.dev {
		return
	}
	w.bytes += cost(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	if len(w.levels) >= nestedDeepest {
		w.tooDeep = true
		return
	}
	fd, opened, err := openedDir(at, name)
	if err != nil {
		return
	}
	if opened.Dev != w.dev {
		_ = unix.Close(fd)
		return
	}
	w.levels = append(w.levels, level{fd: fd, dev: opened.Dev, ino: opened.Ino, name: name})
	if old := len(w.levels) - 1 - heldOpen; old >= 0 {
		w.levels[old].close()
	}
}

// cost is a name's part of what an inode takes.
func cost(st *unix.Stat_t) int64 {
	n := max(st.Blocks*512, fileCost)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR { // its links are its own entries
		return n
	}
	return n / max(int64(st.Nlink), 1) //nolint:gosec // a number of links
}

// leave goes back to the level above. Where that was closed it is the parent of
// the one that is left, unless somebody has moved it.
func (w *walk) leave() {
	last := len(w.levels) - 1
	left := w.levels[last]
	w.levels = w.levels[:last]
	w.spare = left.mem
	defer left.close()
	if last == 0 || w.levels[last-1].fd >= 0 {
		return
	}
	up := &w.levels[last-1]
	fd, st, err := openedDir(left.fd, "..")
	if err == nil && st.Dev == up.dev && st.Ino == up.ino && seek(fd, up.next) {
		up.fd = fd
		return
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	w.findBack()
}

// findBack goes down from the root again, as far as the way is still the same,
// and goes on there. What was moved away is no more looked into. Levels above a
// closed one are closed.
func (w *walk) findBack() {
	at, n := -1, 0
	for ; n < len(w.levels); n++ {
		from := at
		if n == 0 {
			from = unix.AT_FDCWD
		}
		fd, st, err := openedDir(from, w.levels[n].name)
		if err != nil {
			break
		}
		if st.Dev != w.levels[n].dev || st.Ino != w.levels[n].ino {
			_ = unix.Close(fd)
			break
		}
		if at >= 0 {
			_ = unix.Close(at)
		}
		at = fd
	}
	w.levels = w.levels[:n]
	if n == 0 {
		return
	}
	w.levels[n-1].fd = at
	if !seek(at, w.levels[n-1].next) {
		w.levels[n-1].close()
		w.levels = nil
	}
}

func seek(fd int, pos int64) bool {
	_, err := unix.Seek(fd, pos, 0)
	return err == nil
}
