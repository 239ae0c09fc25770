package archive_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(dieIn); dir != "" {
		die(dir)
	}
	goleak.VerifyTestMain(m)
}

func openStore(tb testing.TB, dir string) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Config{Path: filepath.Join(dir, "x.db")})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func openDir(tb testing.TB, dir string) *blob.Dir {
	tb.Helper()
	d, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = d.Close() })
	return d
}

func newArchive(s archive.Store, b archive.Bucket) *archive.Archive {
	return archive.New(archive.Config{
		Store: s, Buckets: map[string]archive.Bucket{archive.Local: b}, Place: archive.Local, Log: slog.New(slog.DiscardHandler),
	})
}

// finished makes a run with events that has ended.
func finished(tb testing.TB, s *store.Store, events ...stromboli.Event) stromboli.Run {
	tb.Helper()
	run, _, err := s.CreateRun(tb.Context(), stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(time.Now()), Tenant: stromboli.DefaultTenant, Kind: stromboli.KindAsync,
			SessionID: uuid.NewString(), Status: stromboli.Running, Owner: "one", Spec: stromboli.RunSpec{Prompt: "p"},
		},
		Events:        []stromboli.Event{{Type: stromboli.EventRunCreated}},
		CreateSession: &stromboli.Session{},
	})
	if err != nil {
		tb.Fatal(err)
	}
	for len(events) > 0 {
		n := min(500, len(events))
		if _, err := s.AppendEvents(tb.Context(), run.ID, 1, events[:n]); err != nil {
			tb.Fatal(err)
		}
		events = events[n:]
	}
	if _, err := s.FinishRun(tb.Context(), run.ID, 1, stromboli.RunFinish{Outcome: stromboli.Outcome{Status: stromboli.Completed}}); err != nil {
		tb.Fatal(err)
	}
	return run
}

func output(n int) []stromboli.Event {
	events := make([]stromboli.Event, n)
	for i := range events {
		events[i] = stromboli.Event{
			Type: stromboli.EventOutput, Line: int64(i + 1),
			Data: json.RawMessage(fmt.Sprintf(`{"stream":"stdout","line":"%d <&> \u2028 %s"}`, i, strings.Repeat("word ", i%200))),
		}
	}
	return events
}

type reader interface {
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
}

func all(tb testing.TB, r reader, runID string, limit int) []stromboli.Event {
	tb.Helper()
	var out []stromboli.Event
	for pos := int64(0); ; pos = out[len(out)-1].Seq {
		page, err := r.Events(tb.Context(), runID, pos, limit)
		if err != nil {
			tb.Fatal(err)
		}
		if len(page) == 0 {
			return out
		}
		if len(page) > limit {
			tb.Fatalf("%d events where %d were asked for", len(page), limit)
		}
		out = append(out, page...)
	}
}

// rowsOf counts what the database has of a run's events.
func rowsOf(tb testing.TB, s *store.Store, runID string) int {
	tb.Helper()
	rows, err := s.Events(tb.Context(), runID, 0, 1)
	if err != nil {
		tb.Fatal(err)
	}
	return len(rows)
}

func TestArchiveReadsAsTheDatabaseDid(t *testing.T) {
	dir := t.TempDir()
	s, d := openStore(t, dir), openDir(t, dir)
	a := newArchive(s, d)
	events := output(3000)
	events[700].Data = json.RawMessage(`{"line":"` + strings.Repeat("x", 1<<20) + `"}`)
	run := finished(t, s, events...)
	want := all(t, a, run.ID, 1000)
	n, err := a.Move(t.Context(), run.ID)
	if err != nil || n == 0 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if rowsOf(t, s, run.ID) != 0 {
		t.Fatal("the rows are there still")
	}
	for _, limit := range []int{64, 1000} {
		if got := all(t, a, run.ID, limit); !reflect.DeepEqual(got, want) {
			t.Fatalf("%d events in pages of %d differ from the %d that were stored", len(got), limit, len(want))
		}
	}
	data, err := a.EventData(t.Context(), run.ID, 702)
	if err != nil || len(data) < 1<<20 {
		t.Errorf("a large event has %d bytes, %v", len(data), err)
	}
	if _, err := a.EventData(t.Context(), run.ID, 9999); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("an event that never was: %v", err)
	}
	if again, err := a.Move(t.Context(), run.ID); err != nil || again != n {
		t.Errorf("moved again: %d, %v", again, err)
	}

	// Anybody's zstd reads the file.
	files, _ := filepath.Glob(filepath.Join(dir, "blobs", "events", run.SessionID, run.ID+"-*.jsonl.zst"))
	if len(files) != 1 {
		t.Fatalf("files %v", files)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	zip, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer zip.Close()
	text, err := io.ReadAll(zip)
	if err != nil || strings.Count(string(text), "\n") != len(want) {
		t.Errorf("the file has %d lines, %v; want %d", strings.Count(string(text), "\n"), err, len(want))
	}
}

// archived is what the event log stands on.
type archived struct {
	*store.Store
	*archive.Archive
}

func (a archived) Events(ctx context.Context, id string, after int64, limit int) ([]stromboli.Event, error) {
	return a.Archive.Events(ctx, id, after, limit)
}

func (a archived) EventData(ctx context.Context, id string, seq int64) (json.RawMessage, error) {
	return a.Archive.EventData(ctx, id, seq)
}

func (a archived) DeleteSession(ctx context.Context, tenant, name string) (stromboli.Session, error) {
	return a.Store.DeleteSession(ctx, tenant, name)
}

func (a archived) DeleteRun(ctx context.Context, id string) error { return a.Store.DeleteRun(ctx, id) }

func TestFollowersReadOnFromTheArchive(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	a := newArchive(s, openDir(t, dir))
	log := eventlog.New(archived{s, a})
	run := finished(t, s, output(1000)...)
	follow := func(after int64, at func(int)) (out []int64, truncated int) {
		for ev, err := range log.Follow(t.Context(), run.ID, after) {
			if err != nil {
				t.Fatal(err)
			}
			if ev.Type == stromboli.EventTruncated {
				truncated++
				continue
			}
			out = append(out, ev.Seq)
			at(len(out))
		}
		return out, truncated
	}
	got, truncated := follow(0, func(n int) {
		if n == 300 { // under the reader's eyes
			if _, err := a.Move(t.Context(), run.ID); err != nil {
				t.Fatal(err)
			}
		}
	})
	if len(got) != 1002 || truncated != 0 || got[1001] != 1002 {
		t.Errorf("%d events and %d gaps in a log that was archived meanwhile", len(got), truncated)
	}
	nothing := func(int) {}
	if got, truncated := follow(1000, nothing); len(got) != 2 || truncated != 0 {
		t.Errorf("resumed at 1000: %v, %d gaps", got, truncated)
	}
	if err := a.Drop(t.Context(), run.ID); err != nil {
		t.Fatal(err)
	}
	if got, truncated := follow(10, nothing); len(got) != 0 || truncated != 1 {
		t.Errorf("after the archive went: %v, %d gaps", got, truncated)
	}
}

// broken is a bucket that fails, and counts what was sent.
type broken struct {
	archive.Bucket
	err error
}

func (b *broken) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if b.err != nil {
		_, _ = io.CopyN(io.Discard, r, 100)
		return 0, b.err
	}
	return b.Bucket.Put(ctx, key, r)
}

func (b *broken) Delete(ctx context.Context, key string) error {
	if b.err != nil {
		return b.err
	}
	return b.Bucket.Delete(ctx, key)
}

func TestBrokenBucketCostsNothing(t *testing.T) {
	for _, fault := range []error{errors.New("no answer"), stromboli.Errorf(stromboli.StorageFull, "the disk is full")} {
		dir := t.TempDir()
		s := openStore(t, dir)
		b := &broken{Bucket: openDir(t, dir), err: fault}
		a := newArchive(s, b)
		run := finished(t, s, output(10)...)
		want := all(t, a, run.ID, 100)
		if _, err := a.Move(t.Context(), run.ID); !errors.Is(err, fault) {
			t.Fatalf("moved into a broken bucket: %v", err)
		}
		if got := all(t, a, run.ID, 100); !reflect.DeepEqual(got, want) || rowsOf(t, s, run.ID) == 0 {
			t.Error("the events are not in the database any more")
		}
		if !strings.Contains(a.Fault(), fault.Error()) {
			t.Errorf("the fault is told as %q", a.Fault())
		}
		b.err = nil
		if _, err := a.Move(t.Context(), run.ID); err != nil || a.Fault() != "" {
			t.Fatalf("moved when the bucket is well again: %v, %q", err, a.Fault())
		}
		b.err = fault
		if err := a.DeleteRun(t.Context(), run.ID); !errors.Is(err, fault) {
			t.Errorf("deleted a run whose archive can't be: %v", err)
		}
		if _, err := s.GetRun(t.Context(), run.Tenant, run.ID); err != nil {
			t.Errorf("the run went, and nobody would ever delete its archive: %v", err)
		}
		b.err = nil
		if err := a.DeleteRun(t.Context(), run.ID); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "events", "*")); len(left) != 0 {
			t.Errorf("left in the bucket: %v", left)
		}
	}
}

func TestDeletedSessionLeavesNoArchive(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	entered, goOn := make(chan struct{}), make(chan struct{})
	a := newArchive(s, &slow{Bucket: openDir(t, dir), entered: entered, goOn: goOn})
	run := finished(t, s, output(10)...)
	moved := make(chan error, 1)
	go func() {
		_, err := a.Move(t.Context(), run.ID)
		moved <- err
	}()
	<-entered // the archive is being written when the session goes
	if _, err := s.DeleteSession(t.Context(), run.Tenant, run.SessionID); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- a.DeleteSession(t.Context(), run.SessionID) }()
	close(goOn)
	if err := errors.Join(<-moved, <-deleted); err != nil {
		t.Fatal(err)
	}
	if err := s.ForgetSession(t.Context(), run.SessionID); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "events", "*", "*")); len(left) != 0 {
		t.Errorf("left in the bucket: %v", left)
	}
}

type slow struct {
	archive.Bucket
	entered, goOn chan struct{}
}

func (b *slow) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	close(b.entered)
	<-b.goOn
	return b.Bucket.Put(ctx, key, r)
}

func TestPagesOfAnyLog(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	a := newArchive(s, openDir(t, dir))
	type log struct {
		id   string
		want []stromboli.Event
	}
	var logs []log
	for _, sizes := range [][]int{nil, {1}, {300 << 10, 1, 2}, {1, 2, 300 << 10}, {100 << 10, 156 << 10, 100 << 10, 1, 1, 700 << 10, 5}} {
		var events []stromboli.Event
		for _, n := range sizes {
			events = append(events, stromboli.Event{Type: stromboli.EventText, Data: json.RawMessage(`{"text": "` + strings.Repeat("é", n/2) + "\"\n}")})
		}
		run := finished(t, s, append(events, output(len(sizes)*100)...)...)
		want := all(t, s, run.ID, 1000)
		for i := range want { // a break between tokens is a space in an archive
			want[i].Data = json.RawMessage(strings.ReplaceAll(string(want[i].Data), "\n", " "))
		}
		logs = append(logs, log{run.ID, want})
		if _, err := a.Move(t.Context(), run.ID); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		l := rapid.SampledFrom(logs).Draw(rt, "log")
		after := rapid.Int64Range(0, int64(len(l.want))).Draw(rt, "after")
		limit := rapid.IntRange(1, 300).Draw(rt, "limit")
		got, err := a.Events(t.Context(), l.id, after, limit)
		if err != nil {
			rt.Fatal(err)
		}
		rest := l.want[after:]
		rest = rest[:min(limit, len(rest))]
		if len(got) != len(rest) || (len(rest) > 0 && !reflect.DeepEqual(got, rest)) {
			rt.Fatalf("%d events after %d, want %d", len(got), after, len(rest))
		}
	})
}
