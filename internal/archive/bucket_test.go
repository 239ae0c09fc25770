package archive_test

import (
	"log/slog"
	"reflect"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/blob/blobtest"
)

func TestArchiveInABucket(t *testing.T) {
	server := blobtest.Start(t)
	dir := t.TempDir()
	s, d := openStore(t, dir), openDir(t, dir)
	place, err := blob.ParsePlace(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blob.OpenBucket(place, server.Getenv, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	open := func(where string) *archive.Archive {
		return archive.New(archive.Config{
			Store: s, Buckets: map[string]archive.Bucket{archive.Local: d, place.String(): b}, Place: where, Log: slog.New(slog.DiscardHandler),
		})
	}
	old, run := finished(t, s, output(5)...), finished(t, s, output(2000)...)
	want := map[string][]stromboli.Event{old.ID: all(t, s, old.ID, 1000), run.ID: all(t, s, run.ID, 1000)}
	if _, err := open(archive.Local).Move(t.Context(), old.ID); err != nil { // before the bucket was configured
		t.Fatal(err)
	}
	a := open(place.String())
	server.Stop()
	if _, err := a.Move(t.Context(), run.ID); err == nil || a.Fault() == "" {
		t.Fatalf("moved into a bucket that doesn't answer: %v, %q", err, a.Fault())
	}
	same(t, a, want)
	server.Resume()
	if _, err := a.Move(t.Context(), run.ID); err != nil || a.Fault() != "" {
		t.Fatalf("%v, %q", err, a.Fault())
	}
	if rowsOf(t, s, run.ID) != 0 {
		t.Error("the rows are there still")
	}
	same(t, a, want)
	server.Stop()
	if _, err := a.Events(t.Context(), run.ID, 0, 10); err == nil {
		t.Error("events of a bucket that doesn't answer are told to be gone")
	}
	server.Resume()
	arch, err := s.GetArchive(t.Context(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	for id := range want {
		if err := a.DeleteRun(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.GetRange(t.Context(), arch.Key, 0, 1); err == nil {
		t.Error("the archive is in the bucket still")
	}
}

func same(t *testing.T, a *archive.Archive, want map[string][]stromboli.Event) {
	t.Helper()
	for id, events := range want {
		if got := all(t, a, id, 500); !reflect.DeepEqual(got, events) {
			t.Errorf("%d events of %d, or others", len(got), len(events))
		}
	}
}
