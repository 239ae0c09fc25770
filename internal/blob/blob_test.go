package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob"
)

func open(t *testing.T, dir string) *blob.Dir {
	t.Helper()
	d, err := blob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func put(t *testing.T, d *blob.Dir, key, text string) {
	t.Helper()
	n, err := d.Put(t.Context(), key, strings.NewReader(text))
	if err != nil || n != int64(len(text)) {
		t.Fatalf("Put %s: %d, %v", key, n, err)
	}
}

func get(t *testing.T, d *blob.Dir, key string) string {
	t.Helper()
	r, err := d.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// files lists everything below the directory but the directories.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPutGetDelete(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	d := open(t, dir)
	put(t, d, "transcripts/s1/1.jsonl", "one")
	put(t, d, "transcripts/s1/1.jsonl", "two")
	put(t, d, "empty", "")
	if got := get(t, d, "transcripts/s1/1.jsonl") + get(t, d, "empty"); got != "two" {
		t.Errorf("got %q", got)
	}
	if fi, err := os.Stat(filepath.Join(dir, "empty")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	for key, want := range map[string]bool{"transcripts/s1/1.jsonl": true, "transcripts/s1": false, "transcripts/s1/1.jsonl/x": false, "none": false} {
		if got, err := d.Exists(t.Context(), key); got != want || err != nil {
			t.Errorf("Exists %s: %v, %v", key, got, err)
		}
	}
	for _, key := range []string{"none", "transcripts", "empty/x"} {
		if _, err := d.Get(t.Context(), key); !errors.Is(err, stromboli.NotFound) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Get %s: %v", key, err)
		}
		if err := d.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete %s: %v", key, err)
		}
	}
	r, err := d.Get(t.Context(), "transcripts/s1/1.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), "transcripts/s1/1.jsonl"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); string(b) != "two" || err != nil {
		t.Errorf("an open blob was lost with its key: %q, %v", b, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "transcripts")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty directory is left: %v", err)
	}
}

func TestDeleteAll(t *testing.T) {
	d := open(t, t.TempDir())
	put(t, d, "a/b/one", "1")
	put(t, d, "a/b/c/two", "2")
	put(t, d, "a/bb", "3")
	put(t, d, "x", "4")
	for range 2 {
		if err := d.DeleteAll(t.Context(), "a/b"); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a/b/one", "a/b/c/two"} {
		if ok, err := d.Exists(t.Context(), key); ok || err != nil {
			t.Errorf("%s: %v, %v", key, ok, err)
		}
	}
	// A blob is not all of what lies below its key.
	if err := d.DeleteAll(t.Context(), "x"); err != nil || get(t, d, "x") != "4" || get(t, d, "a/bb") != "3" {
		t.Error(err)
	}
	for _, prefix := range []string{"", ".", "..", "a/../x", "/"} {
		if err := d.DeleteAll(t.Context(), prefix); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("%q: %v", prefix, err)
		}
	}
}

func TestKeys(t *testing.T) {
	d := open(t, t.TempDir())
	long := strings.Repeat("x", 201)
	for _, key := range []string{
		"", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", ".tmp/x", ".x", "a//b", "a/", "a b", "a\x00b", "a\nb", "a\\b", "é", "a:b", long,
		strings.Repeat("x/", 300) + "x",
	} {
		if _, err := d.Put(t.Context(), key, strings.NewReader("")); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("Put %q: %v", key, err)
		}
		if _, err := d.Get(t.Context(), key); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("Get %q: %v", key, err)
		}
		if err := d.Delete(t.Context(), key); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("Delete %q: %v", key, err)
		}
	}
	put(t, d, "A-z_0.9/run-1.jsonl.zst", "x")
}

func TestNoWayOut(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	d := open(t, dir)
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Put(t.Context(), "link/x", strings.NewReader("x")); err == nil {
		t.Error("a blob was written through a link that leads out")
	}
	if got := files(t, outside); len(got) != 0 {
		t.Errorf("outside: %v", got)
	}
}

func TestFailedPut(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	put(t, d, "k", "old")
	broken := io.MultiReader(strings.NewReader("new"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := d.Put(t.Context(), "k", broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("broken reader: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Put(ctx, "k", strings.NewReader("new")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := d.Put(t.Context(), "k/below", strings.NewReader("new")); err == nil {
		t.Error("a key below a blob")
	}
	if got := get(t, d, "k"); got != "old" {
		t.Errorf("got %q", got)
	}
	if got := files(t, dir); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	put(t, d, "k", "v")
	if err := os.WriteFile(filepath.Join(dir, ".tmp", "half"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = open(t, dir)
	if got := files(t, dir); len(got) != 1 || get(t, d, "k") != "v" {
		t.Errorf("left: %v", got)
	}
}

func TestRace(t *testing.T) {
	d := open(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 4 {
		want := bytes.Repeat([]byte{'a' + byte(i)}, 100_000)
		wg.Go(func() {
			for range 15 {
				if _, err := d.Put(t.Context(), "dir/k", bytes.NewReader(want)); err != nil {
					t.Error(err)
				}
				r, err := d.Get(t.Context(), "dir/k")
				if err == nil {
					b, err := io.ReadAll(r)
					if err := errors.Join(err, r.Close()); err != nil {
						t.Error(err)
					}
					if len(b) != 100_000 || !bytes.Equal(b, bytes.Repeat(b[:1], len(b))) {
						t.Errorf("%d bytes of several writers", len(b))
					}
				} else if !errors.Is(err, stromboli.NotFound) {
					t.Error(err)
				}
				if err := d.Delete(t.Context(), "dir/k"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{"a/b", "../a", ".tmp/a", "a/./b", "a\x00"} {
		f.Add(s)
	}
	dir := f.TempDir()
	d, err := blob.Open(filepath.Join(dir, "in"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = d.Close() })
	f.Fuzz(func(t *testing.T, key string) {
		_, err := d.Put(t.Context(), key, strings.NewReader("x"))
		if err == nil {
			if got := get(t, d, key); got != "x" {
				t.Errorf("got %q", got)
			}
			if err := d.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("outside: %v, %v", entries, err)
		}
	})
}
