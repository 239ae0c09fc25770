package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func endedAs(status stromboli.Status, reason stromboli.Reason) []stromboli.Event {
	data, err := json.Marshal(map[string]string{"status": string(status), "reason": string(reason)})
	if err != nil {
		panic(err) // strings
	}
	return []stromboli.Event{{Type: stromboli.EventRunFinished, Data: data}}
}

// TestRecent: what the last runs tell is a fault until a run tells otherwise, or
// the cause is gone, or it is long ago; runs start all the same.
func TestRecent(t *testing.T) {
	now := time.Now()
	r := &recent{now: func() time.Time { return now }}
	refused := func(want bool) {
		t.Helper()
		if err := r.refusal(); (err != nil) != want {
			t.Errorf("refusal: %v", err)
		}
	}
	refused(false)
	r.Events("run-1", endedAs(stromboli.Failed, stromboli.ReasonAuth))
	refused(true)
	r.Events("run-2", endedAs(stromboli.Cancelled, stromboli.ReasonRequest)) // says nothing of it
	refused(true)
	r.Events("run-3", endedAs(stromboli.Completed, ""))
	refused(false)
	r.Events("run-4", endedAs(stromboli.Failed, stromboli.ReasonAuth))
	r.renewed()
	refused(false)
	r.Events("run-5", endedAs(stromboli.Failed, stromboli.ReasonAuth))
	now = now.Add(recentFor + time.Second)
	refused(false)

	failing := func(want bool) {
		t.Helper()
		if err := r.failedStarts(); (err != nil) != want {
			t.Errorf("starts: %v", err)
		}
	}
	fail := func() { r.Events("run-6", endedAs(stromboli.Failed, stromboli.ReasonEngine)) }
	for range startsInARow - 1 {
		fail()
	}
	failing(false)
	fail()
	failing(true)
	if err := r.failedStarts(); !strings.Contains(err.Error(), "reason engine") {
		t.Error(err)
	}
	r.Events("run-7", []stromboli.Event{{Type: stromboli.EventRunStarted}})
	failing(false)
	for range startsInARow {
		fail()
	}
	failing(true)
	now = now.Add(recentFor + time.Second)
	failing(false)
}
