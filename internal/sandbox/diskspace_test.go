package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestMeasureDir(t *testing.T) {
	dir := memDir(t)
	must(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700))
	writeBytes(t, filepath.Join(dir, "a", "b", "file"), 1<<20)
	n, err := MeasureDir(t.Context(), dir)
	must(t, err)
	if n < 1<<20 || n > 2<<20 {
		t.Errorf("%d bytes", n)
	}
	if n, err := MeasureDir(t.Context(), filepath.Join(dir, "missing")); n != 0 || err != nil {
		t.Errorf("a directory that is missing: %d, %v", n, err)
	}
	if _, err := MeasureDir(t.Context(), filepath.Join(dir, "a", "b", "file")); err == nil {
		t.Error("a file is no directory")
	}
}

// A measurement that has used up its budget ends with its context.
func TestMeasureDirEnds(t *testing.T) {
	dir := memDir(t)
	for _, a := range []string{"a", "b", "c", "d"} {
		must(t, os.Mkdir(filepath.Join(dir, a), 0o700))
		for i := range 5000 {
			must(t, os.WriteFile(filepath.Join(dir, a, string(rune('A'+i))), nil, 0o600))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := MeasureDir(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCounts(t *testing.T) {
	f := newFixture(t, limited(1<<20))
	f.box(t, "runs")
	f.claim(map[string]bool{"runs": true, "made": true, "gone": true})
	starts := f.box(t, "starts")
	starts.started.Store(false)
	f.mu.Lock()
	f.ending["gone"] = true
	f.mu.Unlock()
	if got, want := f.Counts(), (Counts{Starting: 2, Running: 1, Ending: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if s, err := f.Space(); err != nil || s.Free <= 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
