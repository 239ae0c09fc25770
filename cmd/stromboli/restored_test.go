package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// TestBackupOfWhatWasArchived: a backup has the archives that lie in the server's
// own directory. Those in a bucket stay the first server's, and so do the sandboxes
// that its sessions keep.
func TestBackupOfWhatWasArchived(t *testing.T) {
	k := newKeeper(t)
	k.ago(5 * time.Hour)
	old := k.finish(k.run())
	k.sweep("events", time.Hour, 1)
	var keys []string
	dest := filepath.Join(t.TempDir(), "copy.db")
	_, err := store.Snapshot(t.Context(), filepath.Join(k.cfg.DataDir, "x.db"), dest, func(blobs []string) error { keys = blobs; return nil })
	must(t, err)
	if len(keys) != 1 || !strings.HasPrefix(keys[0], "events/"+old.SessionID+"/"+old.ID) {
		t.Errorf("the backup's blobs: %v", keys)
	}

	k.now = time.Now()
	bucket := stromboli.Archive{RunID: k.finish(k.run()).ID, Place: "s3://b", Key: "events/x"}
	must(t, k.store.BeginArchive(t.Context(), bucket))
	must(t, k.store.EndArchive(t.Context(), bucket))
	keeps := k.run()
	_, err = k.store.FinishRun(t.Context(), keeps.ID, 1, stromboli.RunFinish{
		Outcome: stromboli.Outcome{Status: stromboli.Completed},
		Session: stromboli.SessionSave{Kept: &stromboli.KeptSandbox{ID: "abc", Since: k.now, Until: k.now.Add(time.Hour)}},
	})
	must(t, err)
	for range 2 { // it may be repeated
		must(t, k.store.Restored(t.Context()))
	}
	if kept, err := k.store.KeptSandboxes(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("the copy has the first server's sandboxes: %+v, %v", kept, err)
	}
	if a, err := k.store.GetArchive(t.Context(), bucket.RunID); err != nil || a.Place != "shared s3://b" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := k.store.GetArchive(t.Context(), old.ID); err != nil || a.Place != "local" {
		t.Errorf("%+v, %v", a, err)
	}
	must(t, k.archive.DeleteRun(t.Context(), bucket.RunID)) // the bucket isn't there, and is left alone
	if k.there(stromboli.Run{ID: bucket.RunID, Tenant: stromboli.DefaultTenant}) {
		t.Error("the run is there still")
	}
}
