package storetest

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func testNetwork(t *testing.T, f *fixture) {
	in := f.newRun(stromboli.KindAsync)
	in.Run.Status, in.Run.Owner = stromboli.Running, "one"
	in.Run.Network = stromboli.Network{Mode: stromboli.NetworkAllowlist, Allow: []string{"a.example"}}
	run := f.create(t, in)
	if d := cmp.Diff(in.Run.Network, f.get(t, run.ID).Network); d != "" {
		t.Errorf("network (-want +got):\n%s", d)
	}
	_, err := f.SetNetwork(t.Context(), "other", run.ID, stromboli.Network{Mode: stromboli.NetworkOpen})
	wantErr(t, "another tenant's", err, stromboli.NotFound)
	got, err := f.SetNetwork(t.Context(), run.Tenant, run.ID, stromboli.Network{Mode: stromboli.NetworkNone})
	if err != nil || got.Network.Mode != stromboli.NetworkNone || len(got.Network.Allow) != 0 {
		t.Errorf("changed: %+v, %v", got.Network, err)
	}
	if log := f.log(t, run.ID); log[len(log)-1].Type != stromboli.EventNetworkChanged || string(log[len(log)-1].Data) != `{"mode":"none"}` {
		t.Errorf("the event of the change: %+v", log[len(log)-1])
	}

	record := func(seq int64, verdict stromboli.EgressVerdict) stromboli.EgressRecord {
		r := stromboli.EgressRecord{Seq: seq, Host: "h", Verdict: verdict}
		if verdict == stromboli.EgressAllowed {
			r.Usage = &stromboli.Usage{Model: "m", InputTokens: seq, OutputTokens: 10, CacheReadInputTokens: 100}
		}
		return r
	}
	put := func(what string, want error, records ...stromboli.EgressRecord) {
		t.Helper()
		_, err := f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Egress: records})
		if want != nil {
			wantErr(t, what, err, want)
		} else if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	sandbox := func(id string) {
		t.Helper()
		if _, err := f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{SandboxID: &id}); err != nil {
			t.Fatal(err)
		}
	}
	sandbox("one")
	put("the first", nil, record(1, stromboli.EgressAllowed), record(2, stromboli.EgressDenied))
	put("again", store.ErrStale, record(2, stromboli.EgressDenied))
	put("one left out", store.ErrStale, record(4, stromboli.EgressAllowed))
	sandbox("one") // the same one doesn't begin anew
	put("the next", nil, record(3, stromboli.EgressFailed))
	sandbox("two")
	put("of another sandbox", nil, record(1, stromboli.EgressDenied))
	_, err = f.UpdateRun(t.Context(), run.ID, 0, stromboli.RunUpdate{Egress: []stromboli.EgressRecord{record(2, "")}})
	wantErr(t, "an old epoch", err, store.ErrFenced)
	if r := f.get(t, run.ID); r.EgressSeq != 1 || r.EgressDenied != 2 {
		t.Errorf("position %d, %d denied", r.EgressSeq, r.EgressDenied)
	}
	put("one more", nil, record(2, stromboli.EgressAllowed))
	if u, err := f.EgressUsage(t.Context(), run.ID); err != nil || u != (stromboli.Usage{InputTokens: 3, OutputTokens: 20, CacheReadInputTokens: 200, TotalTokens: 223}) {
		t.Errorf("tokens: %+v, %v", u, err)
	}
	if u, err := f.EgressUsage(t.Context(), "run-none"); err != nil || u != (stromboli.Usage{}) {
		t.Errorf("tokens of none: %+v, %v", u, err)
	}
	records, err := f.EgressRecords(t.Context(), run.ID, 1, 2)
	if err != nil || len(records) != 2 || records[0].Seq != 2 || records[1].Seq != 3 || records[1].Verdict != stromboli.EgressFailed {
		t.Errorf("a page: %+v, %v", records, err)
	}
	f.finish(t, run, stromboli.Completed)
	_, err = f.SetNetwork(t.Context(), run.Tenant, run.ID, stromboli.Network{})
	wantErr(t, "after the end", err, stromboli.Conflict)
	f.clock.add(time.Hour)
	if n, err := f.deleteFinished(t); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	if records, err := f.EgressRecords(t.Context(), run.ID, 0, 10); len(records) != 0 || err != nil {
		t.Errorf("records of a run that is gone: %d, %v", len(records), err)
	}
}
