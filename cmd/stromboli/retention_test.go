package main

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/setup"
)

func TestRunsAndTheirEvents(t *testing.T) {
	k := newKeeper(t)
	k.ago(5 * time.Hour)
	old, active := k.finish(k.run()), k.run()
	k.ago(30 * time.Minute)
	young := k.finish(k.run())

	k.sweep("events", time.Hour, 1) // to the archive
	files, _ := filepath.Glob(filepath.Join(k.cfg.DataDir, "blobs", "events", old.SessionID, old.ID+"-*.jsonl.zst"))
	if len(files) != 1 {
		t.Fatalf("files %v", files)
	}
	file := files[0]
	if !k.exists(file) || k.events(old) != 3 || k.events(active) != 2 || k.events(young) != 3 {
		t.Errorf("events: %d, %d, %d", k.events(old), k.events(active), k.events(young))
	}
	if rows, _ := k.store.Events(t.Context(), old.ID, 0, 10); len(rows) != 0 {
		t.Errorf("%d rows are left", len(rows))
	}
	if rows, _ := k.store.Events(t.Context(), young.ID, 0, 10); len(rows) != 3 {
		t.Error("a young run's events were moved")
	}
	second := k.finish(k.run(func(in *stromboli.NewRun) { in.Run.Spec.Prompt = "other" }))
	k.sweep("events", time.Minute, 2)
	if got := k.sweep("archives", time.Hour, 1); got.Bytes == 0 { // old's; the others are young
		t.Error("no bytes are told")
	}
	if k.exists(file) || k.events(old) != 0 || !k.there(old) || k.events(second) != 3 {
		t.Error("the archive of the old one is there, the run isn't, or another's archive went")
	}
	k.sweep("runs", time.Hour, 1)
	if k.there(old) || !k.there(active) || !k.there(young) || k.events(active) != 2 {
		t.Error("the old run is there still, or another isn't")
	}
	k.sweep("runs", time.Minute, 2)
	if k.exists(k.cfg.DataDir, "blobs", "events", "*") {
		t.Error("archives of deleted runs are left")
	}
	if !k.there(active) {
		t.Error("an active run was deleted")
	}
}

func TestIdleSessionsAreSwept(t *testing.T) {
	k := newKeeper(t)
	k.ago(5 * time.Hour)
	old, active := k.finish(k.run()), k.run()
	remembered := k.finish(k.run())
	if err := k.store.DeleteRun(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}
	k.ago(30 * time.Minute)
	young := k.finish(k.run())
	if err := k.store.DeleteRun(t.Context(), young.ID); err != nil {
		t.Fatal(err)
	}
	if got := k.sweep("sessions", time.Hour, 1); got.Bytes < 5000 {
		t.Errorf("%d bytes", got.Bytes)
	}
	for run, want := range map[string]bool{old.SessionID: false, active.SessionID: true, remembered.SessionID: true, young.SessionID: true} {
		_, err := k.store.GetSession(t.Context(), stromboli.DefaultTenant, run)
		if (err == nil) != want || k.exists(k.cfg.SessionsDir(), run) != want {
			t.Errorf("session there %v, directory there %v, want %v", err == nil, k.exists(k.cfg.SessionsDir(), run), want)
		}
	}
}

func TestIdempotencyKeysAndDeliveries(t *testing.T) {
	k := newKeeper(t)
	with := func(key string) func(*stromboli.NewRun) {
		return func(in *stromboli.NewRun) {
			in.Idempotency = &stromboli.Idempotency{Tenant: stromboli.DefaultTenant, Endpoint: "e", Key: key, Hash: "h"}
			in.Run.Spec.WebhookURL = "http://127.0.0.1:1/" + key
		}
	}
	k.ago(25 * time.Hour)
	old := k.finish(k.run(with("old")))
	k.ago(time.Hour)
	young := k.finish(k.run(with("young")))
	k.now = time.Now()
	k.sweep("idempotency_keys", 24*time.Hour, 1)
	again := k.run(with("young"))
	if again.ID != young.ID {
		t.Error("a young key doesn't stand for its run any more")
	}
	if k.run(with("old")).ID == old.ID {
		t.Error("an old key stands for its run still")
	}

	k.sweep("deliveries", time.Minute, 0) // they are owed still
	k.ago(2 * time.Hour)
	claimed, err := k.store.ClaimDeliveries(t.Context(), 1, 1)
	if err != nil || len(claimed) != 1 {
		t.Fatalf("claimed %d, %v", len(claimed), err)
	}
	if err := k.store.FinishDelivery(t.Context(), claimed[0].ID, claimed[0].Attempts, stromboli.DeliveryResult{Status: stromboli.DeliveryDelivered}); err != nil {
		t.Fatal(err)
	}
	k.sweep("deliveries", 3*time.Hour, 0)
	k.sweep("deliveries", time.Hour, 1)
}

func TestAuditIsSwept(t *testing.T) {
	k := newKeeper(t)
	k.sweep("audit", time.Hour, 0) // it is switched off
	k.cfg.Audit.MaxFileAge = time.Millisecond
	trail, err := openAudit(t.Context(), k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trail.Close() })
	k.audit = trail
	for range 3 { // each in a file of its own
		if _, err := trail.Append(t.Context(), stromboli.AuditRecord{Action: "x", Outcome: stromboli.AuditOK}); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
	files := func() int {
		found, _ := filepath.Glob(filepath.Join(k.cfg.DataDir, "audit", "audit*"))
		return len(found)
	}
	had := files()
	k.sweep("audit", time.Hour, 0)
	if files() != had {
		t.Error("young files of the audit log were deleted")
	}
	kinds := k.kinds()
	kind := kinds[slices.IndexFunc(kinds, func(k retention.Kind) bool { return k.Name == "audit" })]
	counted, err := kind.Sweep(t.Context(), time.Now(), true)
	if err != nil || counted.Count == 0 || files() != had {
		t.Errorf("counted %d of %d files, %v", counted.Count, had, err)
	}
	swept, err := kind.Sweep(t.Context(), time.Now(), false)
	if err != nil || swept.Count != counted.Count || files() >= had {
		t.Errorf("swept %d of %d files, %v", swept.Count, had, err)
	}
}

func TestCLIVersionsAreSwept(t *testing.T) {
	k := newKeeper(t)
	for _, v := range []string{"1.0.0-glibc", "1.0.1-glibc", "1.0.2-glibc", setup.CLIVersion + "-glibc"} {
		dir := filepath.Join(k.cfg.CacheDir, "cli", v)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"size":100}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k.sweep("cli_versions", time.Hour, 0) // nobody had looked yet
	k.unused("cli", "1.0.0-glibc", "1.0.1-glibc", setup.CLIVersion+"-glibc")
	k.container("img", engine.Mount{Source: "/elsewhere/cli/1.0.1-glibc", Target: "/opt/stromboli/cli"})
	if got := k.sweep("cli_versions", time.Hour, 1); got.Bytes != 100 {
		t.Errorf("%d bytes", got.Bytes)
	}
	if k.exists(k.cfg.CacheDir, "cli", "1.0.0-glibc") {
		t.Error("the old one is there still")
	}
	for _, v := range []string{"1.0.1-glibc", "1.0.2-glibc", setup.CLIVersion + "-glibc"} {
		if !k.exists(k.cfg.CacheDir, "cli", v) {
			t.Errorf("%s is gone, which is mounted, young or this release's", v)
		}
	}
}

func TestAgentImagesAreSwept(t *testing.T) {
	k := newKeeper(t)
	const repo = "localhost/stromboli-agent:"
	all := []string{repo + "old", repo + "mounted", repo + "asked", repo + "young", "localhost/other:old", k.image}
	for _, name := range all {
		k.load(name)
	}
	k.run(func(in *stromboli.NewRun) { in.Run.Spec.Podman.Image = repo + "asked" })
	k.sweep("images", time.Hour, 0) // nobody had looked yet
	k.unused("images", "old", "mounted", "asked", strings.TrimPrefix(k.image, repo))
	k.container(repo + "mounted")
	k.sweep("images", time.Hour, 1)
	for _, name := range all {
		there, err := k.fake.ImageExists(t.Context(), name)
		if err != nil || there == (name == repo+"old") {
			t.Errorf("%s: there %v, %v", name, there, err)
		}
	}
}

// unused has things of the cache last used two hours ago.
func (k *keeper) unused(dir string, names ...string) {
	k.t.Helper()
	for _, name := range names {
		path := filepath.Join(k.cfg.CacheDir, dir, ".used-"+name)
		f, err := os.OpenFile(path, os.O_CREATE, 0o600)
		if err != nil {
			k.t.Fatal(err)
		}
		_ = f.Close()
		then := time.Now().Add(-2 * time.Hour)
		if err := os.Chtimes(path, then, then); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *keeper) load(name string) {
	k.t.Helper()
	var rootfs bytes.Buffer
	w := tar.NewWriter(&rootfs)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600}); err != nil { // so that ids differ
		k.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.fake.ImageImport(k.t.Context(), &rootfs, name); err != nil {
		k.t.Fatal(err)
	}
}

func (k *keeper) container(image string, mounts ...engine.Mount) {
	k.t.Helper()
	if there, _ := k.fake.ImageExists(k.t.Context(), image); !there {
		k.load(image)
	}
	if _, err := k.fake.Create(k.t.Context(), engine.ContainerSpec{Name: "c" + uuid.NewString(), Image: image, Command: []string{"x"}, Mounts: mounts}); err != nil {
		k.t.Fatal(err)
	}
}

// TestNothingNeededIsSwept does random things at random times, sweeps everything by
// random settings, and looks whether all that must be there still is.
func TestNothingNeededIsSwept(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "retention") // where nothing waits for a disk
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	k := newKeeperIn(t, dir)
	k.measure = func(context.Context, string) (int64, error) { return 0, nil }
	type known struct {
		run    stromboli.Run
		ended  time.Time // zero: it goes on
		silent bool
	}
	var runs []*known
	ages := []time.Duration{0, time.Minute, time.Hour, 3 * time.Hour, 100 * time.Hour}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 2).Draw(rt, "steps") {
			k.ago(time.Duration(rapid.IntRange(0, 300).Draw(rt, "minutes ago")) * time.Minute)
			switch active := slices.IndexFunc(runs, func(r *known) bool { return r.ended.IsZero() }); {
			case active >= 0 && (rapid.Bool().Draw(rt, "finish") || len(runs) > 10):
				r := runs[active]
				k.now = time.UnixMilli(max(k.now.UnixMilli(), r.run.CreatedAt.UnixMilli()))
				k.finish(r.run)
				r.ended = k.now
			default:
				runs = append(runs, &known{run: k.run()})
			}
		}
		k.now = time.Now()
		draw := func(name string) time.Duration { return rapid.SampledFrom(ages).Draw(rt, name) }
		r := config.Retention{
			Events: draw("events"), Archives: draw("archives"), Runs: max(draw("runs"), time.Minute), Sessions: draw("sessions"),
			Deliveries: time.Hour, IdempotencyKeys: time.Hour, CLIVersions: draw("cli"), Images: draw("images"),
		}
		k.cfg.Retention = r
		results, err := retention.New(k.kinds(), slog.New(slog.DiscardHandler)).Sweep(t.Context(), false)
		if err != nil {
			rt.Fatal(err)
		}
		for _, res := range results {
			if res.Error != "" {
				rt.Fatalf("%s: %s", res.Kind, res.Error)
			}
		}
		kept := runs[:0]
		for _, run := range runs {
			age := time.Since(run.ended)
			active := run.ended.IsZero()
			there := k.there(run.run)
			if (active || age < r.Runs) && !there {
				rt.Fatalf("a run that is needed was swept: active %v, age %v, %+v", active, age, r)
			}
			if !there {
				continue
			}
			kept = append(kept, run)
			if _, err := k.store.GetSession(t.Context(), run.run.Tenant, run.run.SessionID); err != nil || !k.exists(k.cfg.SessionsDir(), run.run.SessionID, "home", "file") {
				rt.Fatalf("the session of a run that is there was swept: %v, %+v", err, r)
			}
			if !active && r.Archives > 0 && age > r.Archives {
				run.silent = true
			}
			want := 3
			if active {
				want = 2
			}
			if got := k.events(run.run); got != want && !run.silent {
				rt.Fatalf("%d events of %d: active %v, age %v, %+v", got, want, active, age, r)
			}
		}
		runs = kept
	})
}
