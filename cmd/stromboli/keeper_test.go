package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/store"
)

// keeper is the parts of a server that keep things, with a clock of the store's
// that the test moves.
type keeper struct {
	*sweeps
	t    *testing.T
	now  time.Time
	fake *enginetest.Fake
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	return newKeeperIn(t, t.TempDir())
}

func newKeeperIn(t *testing.T, dir string) *keeper {
	t.Helper()
	environ := []string{"HOME=" + dir, "STROMBOLI_DATA_DIR=" + filepath.Join(dir, "data"), "STROMBOLI_CACHE_DIR=" + filepath.Join(dir, "cache")}
	cfg, err := config.Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.SessionsDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, now: time.Now(), fake: enginetest.NewFake(enginetest.FakeConfig{})}
	t.Cleanup(k.fake.Close)
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(cfg.DataDir, "x.db"), Now: func() time.Time { return k.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	blobs, err := blob.Open(filepath.Join(cfg.DataDir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = blobs.Close() })
	quiet := slog.New(slog.DiscardHandler)
	arch, _, err := openArchive(cfg, environ, st, blobs, quiet)
	if err != nil {
		t.Fatal(err)
	}
	image, err := defaultImage(cfg, environ)
	if err != nil {
		t.Fatal(err)
	}
	boxes := sandbox.New(sandbox.Config{DataDir: cfg.DataDir, Sessions: cfg.SessionsDir(), Logger: quiet})
	k.sweeps = &sweeps{
		cfg: cfg, environ: environ, store: st, archive: arch, engine: k.fake, image: image, measure: sandbox.MeasureDir, room: boxes.Room,
		runner: runner.New(runner.Config{Store: st, Sandboxes: boxes, Blobs: blobs, Archives: arch, Logger: quiet}),
	}
	return k
}

// run makes a run in a session of its own, with a directory.
func (k *keeper) run(change ...func(*stromboli.NewRun)) stromboli.Run {
	k.t.Helper()
	in := stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(k.now), Tenant: stromboli.DefaultTenant, Kind: stromboli.KindAsync, CreatedAt: k.now,
			SessionID: uuid.NewString(), Status: stromboli.Running, Owner: "one", Spec: stromboli.RunSpec{Prompt: "p"},
		},
		Events:        []stromboli.Event{{Type: stromboli.EventRunCreated}, {Type: stromboli.EventText, Data: json.RawMessage(`{"text":"a"}`)}},
		CreateSession: &stromboli.Session{},
	}
	for _, c := range change {
		c(&in)
	}
	run, _, err := k.store.CreateRun(context.Background(), in)
	if err != nil {
		k.t.Fatal(err)
	}
	home := filepath.Join(k.cfg.SessionsDir(), run.SessionID, "home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		k.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "file"), make([]byte, 5000), 0o600); err != nil {
		k.t.Fatal(err)
	}
	return run
}

func (k *keeper) finish(run stromboli.Run) stromboli.Run {
	k.t.Helper()
	if _, err := k.store.FinishRun(context.Background(), run.ID, 1, stromboli.RunFinish{Outcome: stromboli.Outcome{Status: stromboli.Completed}}); err != nil {
		k.t.Fatal(err)
	}
	return run
}

// sweep sweeps a kind of an age: counted first, which changes nothing, then in
// earnest, and once more, when nothing is left.
func (k *keeper) sweep(name string, age time.Duration, want int64) retention.Swept {
	k.t.Helper()
	kinds := k.kinds()
	kind := kinds[slices.IndexFunc(kinds, func(k retention.Kind) bool { return k.Name == name })]
	once := func(dry bool) retention.Swept {
		k.t.Helper()
		swept, err := kind.Sweep(context.Background(), time.Now().Add(-age), dry)
		if err != nil {
			k.t.Fatalf("%s: %v", name, err)
		}
		return swept
	}
	counted := once(true)
	if got := once(false); got.Count != counted.Count || got.Count != want {
		k.t.Errorf("%s: %d counted, %d swept, want %d", name, counted.Count, got.Count, want)
	}
	if left := once(false); left.Count != 0 {
		k.t.Errorf("%s: %d were left", name, left.Count)
	}
	return counted
}

func (k *keeper) there(run stromboli.Run) bool {
	_, err := k.store.GetRun(context.Background(), run.Tenant, run.ID)
	return err == nil
}

// events counts what a reader gets of a run's log.
func (k *keeper) events(run stromboli.Run) int {
	k.t.Helper()
	evs, err := k.archive.Events(context.Background(), run.ID, 0, 100)
	if err != nil {
		k.t.Fatal(err)
	}
	return len(evs)
}

func (k *keeper) exists(parts ...string) bool {
	found, _ := filepath.Glob(filepath.Join(parts...))
	return len(found) > 0
}

func (k *keeper) ago(d time.Duration) { k.now = time.Now().Add(-d) }
