package storetest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func testAttestation(t *testing.T, f *fixture) {
	run := f.running(t)
	_, err := f.Attestation(t.Context(), run.Tenant, run.ID)
	wantErr(t, "before the start", err, stromboli.NotFound)
	for _, image := range []string{"one", "two"} { // another sandbox's takes the place of the first
		want := stromboli.Attestation{Version: 1, At: f.clock.Now(), Image: image, Namespaces: map[string]bool{"pid": true}}
		if _, err := f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Attestation: &want}); err != nil {
			t.Fatal(err)
		}
		got, err := f.Attestation(t.Context(), run.Tenant, run.ID)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%v (-want +got):\n%s", err, d)
		}
	}
	_, err = f.Attestation(t.Context(), "other", run.ID)
	wantErr(t, "another tenant's", err, stromboli.NotFound)
	f.finish(t, run, stromboli.Completed)
	if _, err := f.Attestation(t.Context(), run.Tenant, run.ID); err != nil {
		t.Errorf("after the end: %v", err)
	}
	f.clock.add(time.Hour)
	if n, err := f.deleteFinished(t); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	_, err = f.Attestation(t.Context(), run.Tenant, run.ID)
	wantErr(t, "of a run that is gone", err, stromboli.NotFound)
}
