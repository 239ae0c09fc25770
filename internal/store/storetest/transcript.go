package storetest

import (
	"testing"

	"github.com/tomblancdev/stromboli"
)

// testTranscriptUse: the newest transcripts are in use, and those of sessions with
// a run may be.
func testTranscriptUse(t *testing.T, f *fixture) {
	save := func(key string) stromboli.Run {
		t.Helper()
		run := f.running(t)
		fin := ended(stromboli.Completed)
		fin.Session.TranscriptKey = key
		if _, err := f.FinishRun(t.Context(), run.ID, run.Epoch, fin); err != nil {
			t.Fatal(err)
		}
		return run
	}
	save("a")
	save("b")
	gone := save("c")
	if _, err := f.DeleteSession(t.Context(), stromboli.DefaultTenant, gone.SessionID); err != nil {
		t.Fatal(err)
	}
	busy := f.running(t)
	use, err := f.TranscriptsInUse(t.Context(), []string{"a", "c", "x", ""})
	if err != nil || !use.Keys["a"] || use.Keys["b"] || !use.Keys["c"] || use.Keys["x"] || len(use.Busy) != 1 || !use.Busy[busy.SessionID] {
		t.Errorf("%+v, %v", use, err)
	}
}
