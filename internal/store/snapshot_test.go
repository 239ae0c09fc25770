package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// What a snapshot holds is the state of one moment, whatever is written
// meanwhile, and the blobs that it is told of are those of that state.
func TestSnapshotUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s.db")
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("00000000-0000-4000-8000-%06d%06d", i, n)
				if err := s.CreateSession(context.Background(), stromboli.Session{ID: id, Tenant: "default", CLISessionID: id, TranscriptKey: "imports/" + id + ".jsonl"}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 10 {
		dest := filepath.Join(dir, fmt.Sprint(i))
		var blobs []string
		info, err := store.Snapshot(t.Context(), path, dest, func(keys []string) error { blobs = keys; return nil })
		if err != nil {
			t.Fatal(err)
		}
		got, err := store.CheckFile(t.Context(), dest)
		if err != nil || got != info || int(info.Sessions) != len(blobs) {
			t.Errorf("%v, %+v, said %+v with %d blobs", err, got, info, len(blobs))
		}
		fi, err := os.Stat(dest)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", err, fi.Mode())
		}
	}
	stop()
	wg.Wait()
	gone := errors.New("gone")
	if _, err := store.Snapshot(t.Context(), path, filepath.Join(dir, "none"), func([]string) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("a copy was made of what can't be held")
	}
	if _, err := store.Snapshot(t.Context(), path, filepath.Join(dir, "0"), func([]string) error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file is overwritten: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Snapshot(t.Context(), path, filepath.Join(dir, "closed"), func([]string) error { return nil }); err != nil {
		t.Errorf("without a server: %v", err)
	}
}

func TestDamagedCopiesAreFound(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.CheckFile(t.Context(), path); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

// oldSchema is that of the release before the newest migrations, of which testdata
// has a row for every table.
const oldSchema = 10

// A database of the release before answers for every row once this release has
// opened it, and isn't opened by that release any more.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.db")
	rows, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("schema-%05d.sql", oldSchema)))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := store.MakeOld(t.Context(), path, oldSchema, string(rows))
	if err != nil {
		t.Fatal(err)
	}
	for table, n := range tables {
		if n == 0 {
			t.Errorf("testdata has no row of the table %s", table)
		}
	}
	if info, err := store.CheckFile(t.Context(), path); err != nil || info.Schema != oldSchema {
		t.Fatalf("%v, %+v", err, info)
	}
	// A backup of the release before can be taken and put back by this one.
	copied := path + ".copy"
	var blobs []string
	if _, err := store.Snapshot(t.Context(), path, copied, func(keys []string) error { blobs = keys; return nil }); err != nil || !slices.Equal(blobs, []string{"transcripts/s/1-run.jsonl"}) {
		t.Errorf("%v, %v", err, blobs)
	}
	for _, path := range []string{path, copied} {
		upgraded(t, path, tables)
	}
}

func upgraded(t *testing.T, path string, tables map[string]int) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	now, err := s.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for table, n := range tables {
		if now[table] != n {
			t.Errorf("%s had %d rows and has %d", table, n, now[table])
		}
	}
	ctx := t.Context()
	run, err := s.GetRun(ctx, "default", "run-done")
	if err != nil || run.Status != stromboli.Completed || run.Outcome.Output != "the answer" || run.Spec.Prompt != "the question" || run.Network.Mode != stromboli.NetworkModel || run.EgressDenied != 2 {
		t.Errorf("%v, %+v", err, run)
	}
	if events, err := s.Events(ctx, "run-done", 0, 10); err != nil || len(events) != 2 || string(events[1].Data) != `{"large":true}` {
		t.Errorf("%v, %+v", err, events)
	}
	if a, err := s.Attestation(ctx, "default", "run-done"); err != nil || a.Image != "i" {
		t.Errorf("%v, %+v", err, a)
	}
	session, err := s.GetSession(ctx, "default", "s")
	if err != nil || session.Alias != "mine" || session.Title != "a title" || session.TranscriptKey != "transcripts/s/1-run.jsonl" || session.RunCount != 1 {
		t.Errorf("%v, %+v", err, session)
	}
	if list, err := s.ListSecrets(ctx, "default"); err != nil || len(list) != 1 || list[0].Name != "token" {
		t.Errorf("%v, %+v", err, list)
	}
	if g, err := s.GetGrant(ctx, "grant-1"); err != nil || g.Refresh != "r" {
		t.Errorf("%v, %+v", err, g)
	}
	if active, err := s.ActiveRuns(ctx); err != nil || len(active) != 2 {
		t.Errorf("%v, %+v", err, active)
	}
	if err := s.Restored(ctx); err != nil {
		t.Fatal(err)
	}
	active, err := s.ActiveRuns(ctx)
	if err != nil || len(active) != 2 {
		t.Fatalf("%v, %+v", err, active)
	}
	for _, run := range active {
		if run.Status != stromboli.Running || !run.AgentStarted || run.SandboxID == "" || run.SandboxID == "0123456789abcdef" || run.StartedAt.IsZero() {
			t.Errorf("after a restore: %+v", run)
		}
	}
	if g, err := s.GetGrant(ctx, "grant-1"); err != nil || !g.Revoked {
		t.Errorf("a login outlives a restore: %v, %+v", err, g)
	}
}
