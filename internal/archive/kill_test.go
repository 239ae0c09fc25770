package archive_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/store"
)

// The process that is to die is this program again, told by its environment.
const (
	dieIn  = "STROMBOLI_TEST_DIE_IN" // directory
	dieAt  = "STROMBOLI_TEST_DIE_AT" // step
	dieRun = "STROMBOLI_TEST_DIE_RUN"
)

// deadly is a store and a bucket that kill the process at a step.
type deadly struct {
	*store.Store
	dir   *blob.Dir
	at, n int
}

func (d *deadly) step() {
	if d.n++; d.n == d.at {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func (d *deadly) BeginArchive(ctx context.Context, a stromboli.Archive) error {
	d.step()
	defer d.step()
	return d.Store.BeginArchive(ctx, a)
}

func (d *deadly) EndArchive(ctx context.Context, a stromboli.Archive) error {
	defer d.step()
	return d.Store.EndArchive(ctx, a)
}

func (d *deadly) DeleteArchivedEvents(ctx context.Context, id string) error {
	defer d.step()
	return d.Store.DeleteArchivedEvents(ctx, id)
}

func (d *deadly) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	defer d.step()
	return d.dir.Put(ctx, key, &dying{r, d})
}

func (d *deadly) GetRange(ctx context.Context, key string, offset, n int64) (io.ReadCloser, error) {
	return d.dir.GetRange(ctx, key, offset, n)
}

func (d *deadly) Delete(ctx context.Context, key string) error {
	defer d.step()
	return d.dir.Delete(ctx, key)
}

func (d *deadly) DeleteRun(ctx context.Context, id string) error {
	defer d.step()
	return d.Store.DeleteRun(ctx, id)
}

// dying dies after its first part.
type dying struct {
	io.Reader
	d *deadly
}

func (r *dying) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b[:min(len(b), 100)])
	if r.d != nil {
		r.d.step()
		r.d = nil
	}
	return n, err
}

// die moves a run into the archive, then deletes it, and is killed at a step.
func die(dir string) {
	fail := func(err error) {
		if err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	at, err := strconv.Atoi(os.Getenv(dieAt))
	fail(err)
	s, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "x.db")})
	fail(err)
	b, err := blob.Open(filepath.Join(dir, "blobs"))
	fail(err)
	d := &deadly{Store: s, dir: b, at: at}
	a := newArchive(d, d)
	_, err = a.Move(ctx, os.Getenv(dieRun))
	fail(err)
	fail(a.DeleteRun(ctx, os.Getenv(dieRun)))
	os.Exit(0)
}

func TestKilledAtEveryStep(t *testing.T) {
	const deletes = 7 // from this step on the run is being deleted
	killed := 0
	for step := 1; ; step++ {
		dir := t.TempDir()
		s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(dir, "x.db")})
		if err != nil {
			t.Fatal(err)
		}
		run := finished(t, s, output(50)...)
		want := all(t, s, run.ID, 1000)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), dieIn+"="+dir, dieAt+"="+strconv.Itoa(step), dieRun+"="+run.ID)
		out, err := cmd.CombinedOutput()
		if err == nil {
			break // there are no more steps
		}
		if !strings.Contains(err.Error(), "killed") {
			t.Fatalf("step %d: %v: %s", step, err, out)
		}
		killed++
		s = openStore(t, dir)
		d := openDir(t, dir)
		a := newArchive(s, d)
		if step < deletes {
			for range 2 { // as it was left, then moved on
				if got := all(t, a, run.ID, 7); !reflect.DeepEqual(got, want) {
					t.Fatalf("killed at step %d: %d events of %d, or others", step, len(got), len(want))
				}
				if _, err := a.Move(t.Context(), run.ID); err != nil {
					t.Fatalf("killed at step %d: %v", step, err)
				}
			}
			if rowsOf(t, s, run.ID) != 0 {
				t.Errorf("killed at step %d: the rows are there still", step)
			}
		}
		if err := a.DeleteRun(t.Context(), run.ID); err != nil {
			t.Fatalf("killed at step %d: %v", step, err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "events", "*")); len(left) != 0 {
			t.Errorf("killed at step %d: %v is left", step, left)
		}
	}
	if killed != deletes+1 {
		t.Errorf("killed at %d steps", killed)
	}
}

var _ archive.Store = (*deadly)(nil)
