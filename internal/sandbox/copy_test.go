package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// copied copies from into a new directory.
func copied(t *testing.T, from string, limits copyLimits) (string, treeCopy, error) {
	t.Helper()
	to := t.TempDir()
	c := treeCopy{ctx: t.Context(), left: limits, owners: os.Geteuid() == 0}
	var err error
	within(t, "the copy", func() { err = c.tree(from, to) })
	return to, c, err
}

// look describes a tree, without following links.
func look(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&all, "%s %s %d:%d", strings.TrimPrefix(path, dir), info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&all, " %s %d %q", info.ModTime(), st.Nlink, b)
		case info.IsDir():
			fmt.Fprintf(&all, " %s", info.ModTime())
		default:
			to, err := os.Readlink(path)
			must(t, err)
			fmt.Fprintf(&all, " -> %s", to)
		}
		all.WriteByte('\n')
		return nil
	}))
	return all.String()
}

func TestCopyTree(t *testing.T) {
	from, outside := t.TempDir(), t.TempDir()
	write(t, filepath.Join(outside, "secret"), "of the host")
	write(t, filepath.Join(from, "a/b/file"), "text")
	write(t, filepath.Join(from, "tool"), "#!")
	write(t, filepath.Join(from, "locked/in"), "x")
	must(t, errors.Join(
		os.Chmod(filepath.Join(from, "tool"), 0o755), os.Symlink(outside, filepath.Join(from, "out")),
		os.Symlink("../..", filepath.Join(from, "a/up")), os.Symlink("nowhere", filepath.Join(from, "dangling")),
		os.Link(filepath.Join(from, "tool"), filepath.Join(from, "a/same tool")), os.Mkdir(filepath.Join(from, "empty"), 0o700),
		os.Chmod(filepath.Join(from, "locked"), 0o555)))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(from, "locked"), 0o700) })
	if os.Geteuid() == 0 {
		must(t, errors.Join(os.Lchown(filepath.Join(from, "a/b/file"), 1234, 1235), os.Lchown(filepath.Join(from, "out"), 1234, 1235)))
	}
	past := time.Unix(1_600_000_000, 0)
	must(t, errors.Join(os.Chtimes(filepath.Join(from, "a/b/file"), past, past), os.Chtimes(filepath.Join(from, "a"), past, past)))
	before := look(t, from)

	to, c, err := copied(t, from, defaultCopyLimits())
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(to, "locked"), 0o700) })
	if err != nil || c.unread != 0 {
		t.Fatalf("%v, %d unread", err, c.unread)
	}
	if got := look(t, to); got != before {
		t.Errorf("the copy is\n%sof\n%s", got, before)
	}
	if after := look(t, from); after != before {
		t.Errorf("the source was\n%sis\n%s", before, after)
	}
	// A copy that is written to leaves the source alone.
	write(t, filepath.Join(to, "tool"), "changed")
	if b, err := os.ReadFile(filepath.Join(from, "tool")); err != nil || string(b) != "#!" {
		t.Errorf("the source's file holds %q, %v", b, err)
	}

	if to, c, err := copied(t, filepath.Join(from, "missing"), defaultCopyLimits()); err != nil || c.unread != 0 || strings.Count(look(t, to), "\n") != 1 {
		t.Errorf("a source that isn't there: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	stopped := treeCopy{ctx: gone, left: defaultCopyLimits()}
	if err := stopped.tree(from, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What an agent may have left in its directories holds nobody, gives nobody
// rights, and is no way to fill the disk.
func TestCopyHostileTree(t *testing.T) {
	from := t.TempDir()
	write(t, filepath.Join(from, "suid"), "x")
	must(t, errors.Join(
		syscall.Mkfifo(filepath.Join(from, "fifo"), 0o600),
		os.Chmod(filepath.Join(from, "suid"), 0o755|os.ModeSetuid|os.ModeSetgid),
		os.WriteFile(filepath.Join(from, "sparse"), []byte("head"), 0o600), os.Truncate(filepath.Join(from, "sparse"), 1<<40)))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer func() { _ = unix.Close(fd) }()
	t.Chdir(from) // socket addresses are short
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: "socket"}))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod("device", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) // endless zeros
	}
	to, _, err := copied(t, from, defaultCopyLimits())
	must(t, err)
	entries, err := os.ReadDir(to)
	if err != nil || len(entries) != 2 {
		t.Errorf("copied: %v, %v", entries, err)
	}
	if info, err := os.Lstat(filepath.Join(to, "suid")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the program's mode is %v, %v", info.Mode(), err)
	}
	info, err := os.Lstat(filepath.Join(to, "sparse"))
	if err != nil || info.Size() != 1<<40 || info.Sys().(*syscall.Stat_t).Blocks > 1<<10 {
		t.Errorf("the sparse file: %v, %v", info, err)
	}

	full := t.TempDir()
	for i := range 10 {
		write(t, filepath.Join(full, fmt.Sprint(i)), strings.Repeat("x", 1000))
	}
	if _, _, err := copied(t, full, copyLimits{bytes: 1 << 20, entries: 9}); !errors.Is(err, stromboli.SessionUnusable) {
		t.Errorf("too many files: %v", err)
	}
	if _, _, err := copied(t, full, copyLimits{bytes: 9999, entries: 10}); !errors.Is(err, stromboli.SessionUnusable) && !clones(t, full) {
		t.Errorf("too many bytes: %v", err)
	}
	if _, _, err := copied(t, full, copyLimits{bytes: 10_000, entries: 10}); err != nil {
		t.Errorf("just enough: %v", err)
	}

	deep := t.TempDir()
	dir := deep
	for range maxDepth + 10 {
		dir = filepath.Join(dir, "d")
	}
	must(t, os.MkdirAll(dir, 0o700))
	if _, _, err := copied(t, deep, defaultCopyLimits()); !errors.Is(err, stromboli.SessionUnusable) {
		t.Errorf("nested too deep: %v", err)
	}
}

// clones reports whether the file system shares blocks among files.
func clones(t *testing.T, dir string) bool {
	t.Helper()
	in, err := os.Open(filepath.Join(dir, "0"))
	must(t, err)
	defer func() { _ = in.Close() }()
	out, err := os.Create(filepath.Join(dir, "clone"))
	must(t, err)
	defer func() { _ = out.Close() }()
	return unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil
}

// What a server without root may not read is left out and counted.
func TestCopyUnreadable(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	from, to := filepath.Join(base, "from"), filepath.Join(base, "to")
	write(t, filepath.Join(from, "open"), "x")
	write(t, filepath.Join(from, "closed"), "x")
	write(t, filepath.Join(from, "dir/file"), "x")
	must(t, os.Mkdir(to, 0o777))
	must(t, errors.Join(os.Chmod(to, 0o777), os.Chmod(from, 0o755), os.Chmod(filepath.Join(from, "open"), 0o644), os.Chmod(filepath.Join(from, "closed"), 0), os.Chmod(filepath.Join(from, "dir"), 0)))
	c := treeCopy{ctx: t.Context(), left: defaultCopyLimits()}
	must(t, asNobody(t, base, func() error { return c.tree(from, to) }))
	entries, err := os.ReadDir(to)
	if err != nil || len(entries) != 2 || c.unread != 2 {
		t.Errorf("copied %v, %v; %d unread", entries, err, c.unread)
	}
}
