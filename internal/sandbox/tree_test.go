package sandbox

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const conversation = "7c7a3a64-4d06-4d4e-9d36-7e3b0f4d5f7e"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// within fails a test that hangs.
func within(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

func transcript(h Home) (string, error) {
	f, err := h.ReadTranscript(conversation)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(f)
	return string(b), err
}

func TestTranscript(t *testing.T) {
	dir := t.TempDir()
	h := Home{dir: dir, uid: -1}
	if _, err := transcript(h); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty home: %v", err)
	}
	must(t, h.WriteTranscript(conversation, strings.NewReader("one")))
	if got, err := transcript(h); got != "one" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	// Where the CLI keeps it, it is replaced; equal, it is left alone.
	must(t, os.RemoveAll(filepath.Join(dir, projectsDir)))
	theirs := filepath.Join(dir, projectsDir, "-workspace", conversation+".jsonl")
	write(t, theirs, "two")
	must(t, h.WriteTranscript(conversation, strings.NewReader("three")))
	before, err := os.Stat(theirs)
	must(t, err)
	must(t, h.WriteTranscript(conversation, strings.NewReader("three")))
	after, err := os.Stat(theirs)
	must(t, err)
	if got, err := transcript(h); got != "three" || err != nil || !os.SameFile(before, after) {
		t.Errorf("%q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".claude", ".stromboli*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What an agent puts in a transcript's place holds nobody and is not read.
func TestTranscriptReplaced(t *testing.T) {
	file := projectsDir + "/p/" + conversation + ".jsonl"
	for name, plant := range map[string]func(t *testing.T, home, outside string){
		"link to a project": func(t *testing.T, home, outside string) {
			write(t, filepath.Join(outside, conversation+".jsonl"), "secret")
			must(t, os.MkdirAll(filepath.Join(home, projectsDir), 0o755))
			must(t, os.Symlink(outside, filepath.Join(home, projectsDir, "p")))
		},
		"fifo as a project": func(t *testing.T, home, _ string) {
			must(t, os.MkdirAll(filepath.Join(home, projectsDir), 0o755))
			must(t, syscall.Mkfifo(filepath.Join(home, projectsDir, "p"), 0o600))
		},
		"fifo as the CLI's directory": func(t *testing.T, home, _ string) {
			must(t, syscall.Mkfifo(filepath.Join(home, ".claude"), 0o600))
		},
		"too large": func(t *testing.T, home, _ string) {
			write(t, filepath.Join(home, file), "")
			must(t, os.Truncate(filepath.Join(home, file), MaxTranscript+1))
		},
		"a directory for the temporary file": func(t *testing.T, home, _ string) {
			write(t, filepath.Join(home, ".claude", ".stromboli-transcript", "x"), "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			plant(t, home, t.TempDir())
			h := Home{dir: home, uid: -1}
			within(t, "reading", func() {
				if got, err := transcript(h); err == nil {
					t.Errorf("read %q", got)
				}
			})
			within(t, "writing", func() {
				if err := h.WriteTranscript(conversation, strings.NewReader("saved")); err != nil {
					t.Errorf("writing: %v", err)
				}
			})
			if got, err := transcript(h); got != "saved" || err != nil {
				t.Errorf("then it holds %q, %v", got, err)
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for other owners")
	}
}

func owner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no owner")
	}
	return int(st.Uid)
}

func TestSessionDirectoryChangesHands(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "session", "home")
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "")
	must(t, sessionDir(dir, 1000, 1000))
	write(t, filepath.Join(dir, "a", "b", "file"), "")
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(dir, "dirlink")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0))
	must(t, os.Chmod(filepath.Join(dir, "a"), 0))
	within(t, "changing hands", func() {
		if err := sessionDir(dir, 2000, 2000); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{".", "a", "a/b", "a/b/file", "link", "dirlink", "fifo"} {
		if uid := owner(t, filepath.Join(dir, name)); uid != 2000 {
			t.Errorf("%s belongs to %d", name, uid)
		}
	}
	if uid := owner(t, outside); uid != 0 {
		t.Errorf("what a link leads to belongs to %d", uid)
	}
	must(t, os.Chmod(dir, 0))
	must(t, sessionDir(dir, 2000, 2000))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
}

// A server that died in the middle has not forgotten the rest.
func TestSessionDirectoryHalfChanged(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "home")
	must(t, sessionDir(dir, 1000, 1000))
	write(t, filepath.Join(dir, "one"), "")
	write(t, filepath.Join(dir, "two"), "")
	must(t, os.Lchown(filepath.Join(dir, "one"), 2000, 2000))
	must(t, sessionDir(dir, 2000, 2000))
	if owner(t, filepath.Join(dir, "two")) != 2000 || owner(t, dir) != 2000 {
		t.Error("not all has changed hands")
	}
}

func TestRemoveTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sb")
	write(t, filepath.Join(dir, "tmp", "closed", "inside", "file"), "")
	write(t, filepath.Join(dir, "tmp", "readonly", "file"), "")
	outside := t.TempDir()
	write(t, filepath.Join(outside, "keep"), "")
	must(t, os.Symlink(outside, filepath.Join(dir, "tmp", "link")))
	must(t, syscall.Mkfifo(filepath.Join(dir, "tmp", "fifo"), 0))
	must(t, os.Chmod(filepath.Join(dir, "tmp", "closed", "inside"), 0))
	must(t, os.Chmod(filepath.Join(dir, "tmp", "closed"), 0))
	must(t, os.Chmod(filepath.Join(dir, "tmp", "readonly"), 0o500))
	within(t, "removing", func() {
		if err := asNobody(t, filepath.Dir(dir), func() error { return removeTree(dir) }); err != nil {
			t.Error(err)
		}
	})
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Error(err)
	}
	must(t, removeTree(dir)) // again is success
}

// asNobody does something below a directory as a user whom rights hold back.
func asNobody(t *testing.T, dir string, do func() error) error {
	if os.Getuid() != 0 {
		return do()
	}
	const nobody = 65534
	for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		must(t, os.Chmod(at, 0o711)) // that other user passes
	}
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	}))
	runtime.LockOSThread() // whose user it is for files
	defer runtime.UnlockOSThread()
	must(t, unix.Setfsuid(nobody))
	defer func() { _ = unix.Setfsuid(0) }()
	return do()
}

// However deep an agent nests directories, removing them takes few descriptors.
func TestRemoveDeepTree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sb")
	must(t, os.Mkdir(dir, 0o700))
	root, err := os.OpenRoot(dir)
	must(t, err)
	const depth = 800
	for range depth {
		must(t, root.Mkdir("d", 0o700))
		next, err := root.OpenRoot("d")
		must(t, err)
		must(t, root.Close())
		root = next
	}
	must(t, root.Close())
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 400, Max: old.Max}))
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old) }()
	must(t, removeTree(dir))
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
