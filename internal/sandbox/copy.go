package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// copyLimits bound what the copy of a session may take: bytes that are really
// written (not holes, not blocks that the file system shares) and entries.
type copyLimits struct {
	bytes   int64
	entries int
}

func defaultCopyLimits() copyLimits { return copyLimits{bytes: 16 << 30, entries: 1_000_000} }

// copyChunk is copied between two looks at the context.
const copyChunk = 64 << 20

// copySession copies a session's directories for a sandbox that is about to be
// made. The source is read only; nobody may be running in it. The copy is made
// in the sandbox's directory, put into its place in one step, and on the disk
// on return. It reports how much could not be read. It may be repeated.
func (m *Manager) copySession(ctx context.Context, s Spec) (unread int, err error) {
	dir := filepath.Join(m.dir(s.ID), "copy")
	c := treeCopy{ctx: ctx, left: m.copyLimits, owners: os.Geteuid() == 0}
	for _, name := range []string{"home", "workspace"} {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return 0, fmt.Errorf("making the fork's directory: %w", err)
		}
		if err := c.tree(m.sessionPath(s.CopyFrom, name), to); err != nil {
			return 0, fmt.Errorf("copying the %s of session %s: %w", name, s.CopyFrom, err)
		}
	}
	place := filepath.Join(m.dir(s.ID), ephemeralName)
	if !s.Ephemeral {
		place = filepath.Join(m.cfg.Sessions, s.SessionID)
		if err := removeTree(place); err != nil { // of an attempt that was cut off
			return 0, fmt.Errorf("removing an unfinished fork: %w", err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o700); err != nil {
		return 0, fmt.Errorf("putting the fork into its place: %w", err)
	}
	if err := os.Rename(dir, place); err != nil {
		return 0, fmt.Errorf("putting the fork into its place: %w", err)
	}
	return c.unread, syncFS(place)
}

// syncFS has everything that was written to a file system put on its disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("syncing the fork: %w", err)
	}
	return nil
}

// treeCopy copies trees that an agent filled. It follows no link out of them
// and takes over files, directories and symbolic links with their rights,
// times and owners; hard links stay hard links among the copies, and sparse
// files sparse. Sockets, pipes and devices are left out, as are extended
// attributes; setuid and setgid bits are dropped.
type treeCopy struct {
	ctx    context.Context
	left   copyLimits
	owners bool // may give files away
	unread int  // what the server may not read

	src, dst *os.Root
	links    map[inode]string // copies of files that have several names
}

type inode struct{ dev, ino uint64 }

// tree copies the content of the directory from, which may be missing, into
// the directory to.
func (c *treeCopy) tree(from, to string) (err error) {
	c.links = make(map[inode]string)
	c.src, err = os.OpenRoot(from)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		c.unread++
		return nil
	case err != nil:
		return err
	}
	defer func() { _ = c.src.Close() }()
	if c.dst, err = os.OpenRoot(to); err != nil {
		return err
	}
	defer func() { _ = c.dst.Close() }()
	return c.directory(".", 0)
}

func (c *treeCopy) directory(dir string, depth int) error {
	if depth > maxDepth {
		return stromboli.Errorf(stromboli.SessionUnusable, "the session can't be forked: its directories are nested more than %d deep", maxDepth)
	}
	info, err := c.src.Lstat(dir)
	if err != nil {
		return err
	}
	err = eachEntry(c.src, dir, func(e fs.DirEntry) error { return c.entry(path.Join(dir, e.Name()), depth) })
	if errors.Is(err, fs.ErrPermission) {
		c.unread++
		err = nil
	}
	return errors.Join(err, c.dress(dir, info)) // last: it may close the directory
}

func (c *treeCopy) entry(name string, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.left.entries--; c.left.entries < 0 {
		return stromboli.Errorf(stromboli.SessionUnusable, "the session can't be forked: it has more than %d files", defaultCopyLimits().entries)
	}
	info, err := c.src.Lstat(name)
	if err != nil {
		return c.unreadable(err)
	}
	switch {
	case info.IsDir():
		if err := c.dst.Mkdir(name, 0o700); err != nil {
			return err
		}
		return c.directory(name, depth+1)
	case info.Mode().Type() == fs.ModeSymlink:
		target, err := c.src.Readlink(name)
		if err != nil {
			return c.unreadable(err)
		}
		if err := c.dst.Symlink(target, name); err != nil {
			return err
		}
		return c.give(name, info)
	case info.Mode().IsRegular():
		return c.file(name, info)
	}
	return nil
}

// unreadable counts what the server may not read and passes other errors on.
func (c *treeCopy) unreadable(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		c.unread++
		return nil
	}
	return err
}

func (c *treeCopy) file(name string, info fs.FileInfo) error {
	st, _ := info.Sys().(*syscall.Stat_t)
	shared := st != nil && st.Nlink > 1
	if shared {
		if first, ok := c.links[inode{st.Dev, st.Ino}]; ok {
			return c.dst.Link(first, name)
		}
	}
	in, err := c.src.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return c.unreadable(err)
	}
	defer func() { _ = in.Close() }()
	out, err := c.dst.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(c.content(out, in), out.Close()); err != nil {
		return err
	}
	if shared {
		c.links[inode{st.Dev, st.Ino}] = name
	}
	return c.dress(name, info)
}

// content shares the file's blocks where the file system can; else it copies
// them, without the holes.
func (c *treeCopy) content(out, in *os.File) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	for at := int64(0); at < size; {
		from, to, err := nextData(in, at, size)
		if err != nil {
			return err
		}
		if from >= size {
			break
		}
		if err := c.piece(out, in, from, min(to-from, copyChunk)); err != nil {
			return err
		}
		at = min(to, from+copyChunk)
	}
	return out.Truncate(size)
}

func (c *treeCopy) piece(out, in *os.File, at, n int64) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if c.left.bytes -= n; c.left.bytes < 0 {
		return stromboli.Errorf(stromboli.SessionUnusable, "the session can't be forked: its files are larger than %d GiB", defaultCopyLimits().bytes>>30)
	}
	if _, err := in.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := out.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(out, in, n)
	return err
}

// nextData finds the next stretch at or after at that is no hole.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = f.Seek(at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole
		return size, size, nil
	case errors.Is(err, unix.EINVAL): // this file system doesn't tell
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	return from, to, err
}

// dress gives a copy the rights, times and owner of what it was made from.
func (c *treeCopy) dress(name string, info fs.FileInfo) error {
	if err := c.give(name, info); err != nil {
		return err
	}
	if err := c.dst.Chmod(name, info.Mode().Perm()); err != nil {
		return err
	}
	return c.dst.Chtimes(name, info.ModTime(), info.ModTime())
}

func (c *treeCopy) give(name string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !c.owners || !ok {
		return nil
	}
	return c.dst.Lchown(name, int(st.Uid), int(st.Gid))
}
