package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// measured walks a tree to its end.
func measured(t *testing.T, roots ...string) *walk {
	t.Helper()
	w := newWalk(roots...)
	defer w.close()
	for end := time.Now().Add(time.Minute); ; {
		more, err := w.step(100)
		must(t, err)
		if !more {
			return w
		}
		if time.Now().After(end) {
			t.Fatal("the walk doesn't end")
		}
		if n := w.held(); n > heldOpen+1 {
			t.Fatalf("%d directories are held open", n)
		}
	}
}

// memDir is a directory in memory, where there is one: for trees whose making
// takes a disk its time.
func memDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "stromboli-test-")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { must(t, exec.Command("rm", "-rf", dir).Run()) }) // faster than removeTree
	return dir
}

func (w *walk) held() int {
	n := 0
	for _, l := range w.levels {
		if l.fd >= 0 {
			n++
		}
	}
	return n
}

func writeBytes(t *testing.T, path string, n int) {
	t.Helper()
	must(t, os.WriteFile(path, make([]byte, n), 0o600))
}

// blocks is what a path itself takes, as the file system says it.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return max(info.Sys().(*syscall.Stat_t).Blocks*512, fileCost) //nolint:forcetypeassert // Linux
}

func TestWalk(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string)
		want int64 // beside the directories themselves; -1: see below
	}{
		{"nothing", func(*testing.T, string) {}, 0},
		{"a file", func(t *testing.T, dir string) { writeBytes(t, filepath.Join(dir, "a"), 3<<20) }, 3 << 20},
		{"a sparse file", func(t *testing.T, dir string) {
			writeBytes(t, filepath.Join(dir, "a"), 0)
			must(t, os.Truncate(filepath.Join(dir, "a"), 1<<40))
		}, fileCost},
		{"space that is only set aside", func(t *testing.T, dir string) {
			f, err := os.Create(filepath.Join(dir, "a"))
			must(t, err)
			must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 2<<20))
			must(t, f.Close())
		}, 2 << 20},
		{"three names of a file", func(t *testing.T, dir string) {
			writeBytes(t, filepath.Join(dir, "a"), 3<<20)
			must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
			must(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
			must(t, os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "d", "c")))
		}, 3 << 20},
		{"many small files", func(t *testing.T, dir string) {
			for i := range 3000 {
				writeBytes(t, filepath.Join(dir, fmt.Sprint(i)), i%2)
			}
		}, 3000 * fileCost},
		{"names that nobody expects", func(t *testing.T, dir string) {
			for _, name := range []string{"a\nb", " ", "-rf", "\xff\xfe", strings.Repeat("x", 255), "…"} {
				writeBytes(t, filepath.Join(dir, name), 1)
			}
		}, 6 * fileCost},
		{"links that lead out, round and nowhere; fifos, sockets", func(t *testing.T, dir string) {
			must(t, os.Symlink("/usr", filepath.Join(dir, "out")))
			must(t, os.Symlink(".", filepath.Join(dir, "round")))
			must(t, os.Symlink("gone", filepath.Join(dir, "nowhere")))
			must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
			must(t, unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o600, 0))
		}, 5 * fileCost},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(t, dir)
			var dirs int64
			must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs += blocks(t, path)
				}
				return err
			}))
			got := measured(t, dir).bytes - dirs
			if d := got - c.want; d < -64 || d > c.want/50+8192 { // a file's own extents may cost a block
				t.Errorf("%d bytes, want %d", got, c.want)
			}
		})
	}
}

// TestWalkRootIsALink: what stands in the place of a root is not followed.
func TestWalkRootIsALink(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Symlink("/usr", filepath.Join(dir, "home")))
	w := newWalk(filepath.Join(dir, "home"))
	defer w.close()
	if _, err := w.step(10); err == nil || w.bytes != 0 {
		t.Errorf("%d bytes, %v", w.bytes, err)
	}
	if w := measured(t, filepath.Join(dir, "not there")); w.bytes != 0 {
		t.Error("nothing takes", w.bytes)
	}
}

// TestWalkOtherFileSystem: what is mounted below a root is another's.
func TestWalkOtherFileSystem(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "m"), 0o700))
	if err := unix.Mount("tmpfs", filepath.Join(dir, "m"), "tmpfs", 0, ""); err != nil {
		t.Skip("mounting needs root:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "m"), unix.MNT_DETACH) })
	writeBytes(t, filepath.Join(dir, "m", "a"), 1<<20)
	if w := measured(t, dir); w.bytes > 2*fileCost {
		t.Errorf("%d bytes", w.bytes)
	}
}

// chain makes directories in each other, with a file of a block in each, and
// goes back to where it was.
func chain(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := unix.Open(dir, openDir, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(at, "d", 0o700))
		next, err := unix.Openat(at, "d", openDir, 0)
		must(t, err)
		fd, err := unix.Openat(next, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
		must(t, err)
		must(t, unix.Close(fd))
		must(t, unix.Close(at))
		at = next
	}
	must(t, unix.Close(at))
}

func TestWalkDeep(t *testing.T) {
	dir := memDir(t)
	chain(t, dir, 4000)
	writeBytes(t, filepath.Join(dir, "z"), 1<<20) // met after the chain, or before it
	w := measured(t, dir)
	if want := int64(8001*fileCost + 1<<20); w.bytes < want || w.bytes > want+64<<10 || w.tooDeep {
		t.Errorf("%d bytes, want %d; too deep: %v", w.bytes, want, w.tooDeep)
	}
	deeper := memDir(t)
	chain(t, deeper, nestedDeepest+1)
	if w := measured(t, deeper); !w.tooDeep {
		t.Error("what is too deep to be measured passes")
	}
}

// TestWalkMoved: a directory that is moved while the walk is below it costs the
// walk that directory and nothing else.
func TestWalkMoved(t *testing.T) {
	dir, away := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
	chain(t, filepath.Join(dir, "a", "b"), 3*heldOpen)
	for i := range 50 {
		writeBytes(t, filepath.Join(dir, "a", fmt.Sprint(i)), 64<<10)
	}
	w := newWalk(dir)
	defer w.close()
	moved := false
	for {
		more, err := w.step(1)
		must(t, err)
		if !moved && len(w.levels) == 3+3*heldOpen {
			must(t, os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(away, "b")))
			moved = true
		}
		if !more {
			break
		}
	}
	if !moved {
		t.Fatal("the walk never was at the bottom")
	}
	if w.bytes < 50*64<<10 || w.held() != 0 {
		t.Errorf("%d bytes; %d directories are open", w.bytes, w.held())
	}
}

// TestWalkMany: memory doesn't grow with the number of files.
func TestWalkMany(t *testing.T) {
	dir := memDir(t)
	const files = 50_000
	for i := range files {
		must(t, unix.Mkfifo(filepath.Join(dir, fmt.Sprint(i)), 0o600))
	}
	var before, after runtime.MemStats
	w := newWalk(dir)
	defer w.close()
	_, err := w.step(1)
	must(t, err)
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := threadTime()
	runtime.LockOSThread()
	_, err = w.step(files - 10)
	must(t, err)
	cost := threadTime() - began
	runtime.UnlockOSThread()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if more := int64(after.HeapAlloc) - int64(before.HeapAlloc); more > 1<<20 {
		t.Errorf("%d files cost %d bytes of memory", files, more)
	}
	t.Logf("%s an entry", cost/files)
	if w.bytes < (files-10)*fileCost {
		t.Errorf("%d bytes", w.bytes)
	}
}

func TestDeleted(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	writeBytes(t, path, 3<<20)
	f, err := os.Open(path)
	must(t, err)
	defer func() { _ = f.Close() }()
	again, err := os.Open(path)
	must(t, err)
	defer func() { _ = again.Close() }()
	ns, err := pidNamespace(os.Getpid())
	must(t, err)
	sum := func(namespace string) int64 {
		w := measured(t, dir)
		d := &deleted{namespace: namespace, devs: w.devs}
		defer d.close()
		for {
			more, err := d.step(10)
			must(t, err)
			if !more {
				return d.bytes
			}
		}
	}
	before := sum(ns)
	must(t, os.Remove(path))
	if got := sum(ns) - before; got < 3<<20 || got > 4<<20 {
		t.Errorf("%d bytes more of deleted files", got)
	}
	if got := sum("pid:[1]"); got != 0 {
		t.Errorf("%d bytes in a namespace that isn't", got)
	}
}
