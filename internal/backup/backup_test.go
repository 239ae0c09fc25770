package backup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/backup"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o700))
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// made is a backup of a "database" and a blob.
func made(t *testing.T, dest string) {
	t.Helper()
	w, err := backup.Create(dest)
	must(t, err)
	write(t, w.Path(backup.Database), "rows")
	must(t, w.Added(t.Context(), backup.Database))
	must(t, w.Add(t.Context(), backup.Blobs+"/a/b.jsonl", strings.NewReader("a transcript")))
	if _, err := os.Lstat(dest); err == nil {
		t.Error("it is there before it is whole")
	}
	_, err = w.Commit(t.Context(), backup.Manifest{Program: "test", Schema: 7})
	must(t, err)
	must(t, w.Close())
}

func TestBackupAppearsWhole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dest := filepath.Join(dir, "b")
	w, err := backup.Create(dest)
	must(t, err)
	must(t, w.Add(t.Context(), "x", strings.NewReader("x")))
	must(t, w.Close())
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("what was not committed is left: %v, %v", err, left)
	}
	made(t, dest)
	if _, err := backup.Create(dest); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	s, err := backup.Open(dest)
	must(t, err)
	must(t, s.Verify(t.Context()))
	if s.Manifest.Schema != 7 || len(s.Manifest.Files) != 2 || s.Manifest.Files[0].Size != 4 {
		t.Errorf("%+v", s.Manifest)
	}
	must(t, s.Close())
}

func TestDamagedBackupsAreFound(t *testing.T) {
	t.Parallel()
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside, "rows")
	for name, change := range map[string]func(t *testing.T, dir string){
		"a changed byte": func(t *testing.T, dir string) { write(t, filepath.Join(dir, "blobs/a/b.jsonl"), "A transcript") },
		"a shorter file": func(t *testing.T, dir string) { write(t, filepath.Join(dir, backup.Database), "row") },
		"a missing file": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, backup.Database))) },
		"no manifest":    func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, backup.ManifestName))) },
		"half a manifest": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, backup.ManifestName), `{"format":1,"files":[`)
		},
		"a later format": func(t *testing.T, dir string) { write(t, filepath.Join(dir, backup.ManifestName), `{"format":2}`) },
		"a strange name": func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, backup.ManifestName), `{"format":1,"files":[{"path":"blobs/../../x"},{"path":"stromboli.db"}]}`)
		},
		"a link that leads out": func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, backup.Database)))
			must(t, os.Symlink(outside, filepath.Join(dir, backup.Database)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "b")
			made(t, dir)
			change(t, dir)
			s, err := backup.Open(dir)
			if err == nil {
				err = s.Verify(t.Context())
				must(t, s.Close())
			}
			if err == nil {
				t.Error("it is taken for whole")
			}
		})
	}
}

// What is held can be read, however often its owner replaces and deletes it.
func TestHeldBlobsStay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	blobs := filepath.Join(dir, "blobs")
	var mu sync.Mutex
	version := 0
	key := func(n int) string { return fmt.Sprintf("s/%d.jsonl", n) }
	write(t, filepath.Join(blobs, key(0)), "0")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // a session that goes on and on
		for n := 1; ctx.Err() == nil; n++ {
			if err := os.WriteFile(filepath.Join(blobs, key(n)), fmt.Append(nil, n), 0o600); err != nil {
				t.Error(err)
			}
			mu.Lock()
			version = n
			mu.Unlock()
			if err := os.Remove(filepath.Join(blobs, key(n-1))); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		s, err := backup.NewStage(filepath.Join(dir, "stage"), blobs)
		must(t, err)
		if _, err := backup.NewStage(filepath.Join(dir, "stage"), blobs); err == nil {
			t.Error("two backups at a time")
		}
		n := 0
		for held := false; !held; {
			must(t, s.HoldAll(t.Context()))
			mu.Lock()
			n = version
			mu.Unlock()
			err := s.Hold([]string{key(n)})
			if held = err == nil; err != nil && !errors.Is(err, backup.ErrGone) {
				t.Fatal(err)
			}
		}
		f, err := s.Open(key(n))
		must(t, err)
		if b, err := io.ReadAll(f); err != nil || string(b) != fmt.Sprint(n) {
			t.Errorf("%v, %q", err, b)
		}
		must(t, f.Close())
		must(t, s.Close())
	}
	stop()
	wg.Wait()
	if left, err := os.ReadDir(filepath.Join(dir, "stage")); err != nil || len(left) != 1 {
		t.Errorf("%v, left: %v", err, left)
	}
}

func TestTreesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "sessions")
	write(t, filepath.Join(from, "s/workspace/run.sh"), "#!/bin/sh\n")
	must(t, os.Chmod(filepath.Join(from, "s/workspace/run.sh"), 0o755))
	write(t, filepath.Join(from, "s/workspace/closed/file"), "in a directory that is read-only")
	must(t, os.Chmod(filepath.Join(from, "s/workspace/closed"), 0o500))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(from, "s/workspace/closed"), 0o700) })
	must(t, os.Symlink("/etc/passwd", filepath.Join(from, "s/workspace/out")))
	must(t, syscall.Mkfifo(filepath.Join(from, "s/workspace/pipe"), 0o600))
	write(t, filepath.Join(from, ".stromboli/x"), "the server's")
	write(t, filepath.Join(from, "s/workspace/huge"), "and nothing behind it")
	must(t, os.Truncate(filepath.Join(from, "s/workspace/huge"), 1<<40))
	var left []string
	old := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	must(t, os.Chtimes(filepath.Join(from, "s/workspace/run.sh"), old, old))

	w, err := backup.Create(filepath.Join(dir, "b"))
	must(t, err)
	write(t, w.Path(backup.Database), "rows")
	must(t, w.Added(t.Context(), backup.Database))
	must(t, w.AddTree(t.Context(), backup.Sessions, from, func(name string) bool { return name == ".stromboli" },
		func(name, why string) { left = append(left, name+": "+why) }))
	_, err = w.Commit(t.Context(), backup.Manifest{})
	must(t, err)
	must(t, w.Close())
	if len(left) != 1 || !strings.HasPrefix(left[0], "s/workspace/huge: ") {
		t.Errorf("left out: %q", left)
	}

	s, err := backup.Open(filepath.Join(dir, "b"))
	must(t, err)
	must(t, s.Verify(t.Context()))
	to := filepath.Join(dir, "to")
	must(t, os.Mkdir(to, 0o700))
	root, err := os.OpenRoot(to)
	must(t, err)
	must(t, s.Unpack(t.Context(), backup.Sessions, root))
	must(t, errors.Join(root.Close(), s.Close()))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(to, "s/workspace/closed"), 0o700) })
	fi, err := os.Stat(filepath.Join(to, "s/workspace/run.sh"))
	if err != nil || fi.Mode().Perm() != 0o755 || !fi.ModTime().Equal(old) {
		t.Errorf("%v, %v", err, fi)
	}
	if fi, err := os.Stat(filepath.Join(to, "s/workspace/closed")); err != nil || fi.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", err, fi)
	}
	if b, err := os.ReadFile(filepath.Join(to, "s/workspace/closed/file")); err != nil || !strings.HasPrefix(string(b), "in a") {
		t.Errorf("%v, %q", err, b)
	}
	if link, err := os.Readlink(filepath.Join(to, "s/workspace/out")); err != nil || link != "/etc/passwd" {
		t.Errorf("%v, %q", err, link)
	}
	for _, name := range []string{"s/workspace/pipe", ".stromboli"} {
		if _, err := os.Lstat(filepath.Join(to, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}
