package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/tomblancdev/stromboli"
)

func (f *fixture) pages(t *testing.T, filter stromboli.RunFilter) []string {
	t.Helper()
	if filter.Tenant == "" {
		filter.Tenant = stromboli.DefaultTenant
	}
	var ids []string
	for {
		runs, next, err := f.ListRuns(t.Context(), filter)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			ids = append(ids, r.ID)
		}
		if next == "" {
			return ids
		}
		if len(runs) == 0 {
			t.Fatal("an empty page with a next one")
		}
		filter.Cursor = next
	}
}

func testList(t *testing.T, f *fixture) {
	var want []string
	for i := range 23 {
		in := f.newRun([]stromboli.Kind{stromboli.KindAsync, stromboli.KindSync}[i%2])
		want = append(want, f.create(t, in).ID)
		if i%5 == 0 { // several within one millisecond
			f.clock.add(time.Millisecond)
		}
	}
	slices.Reverse(want)
	for _, limit := range []int{0, 1, 4, 22, 23, 24} {
		if got := f.pages(t, stromboli.RunFilter{Limit: limit}); !slices.Equal(got, want) {
			t.Errorf("limit %d: %v, want %v", limit, got, want)
		}
	}
	runs, next, err := f.ListRuns(t.Context(), stromboli.RunFilter{Tenant: stromboli.DefaultTenant, Limit: 10})
	if err != nil || len(runs) != 10 || next == "" {
		t.Fatalf("%d runs, next %q, %v", len(runs), next, err)
	}
	f.create(t, f.newRun(stromboli.KindAsync)) // must not shift the pages
	if got := f.pages(t, stromboli.RunFilter{Limit: 5, Cursor: next}); !slices.Equal(got, want[10:]) {
		t.Errorf("after the cursor: %v, want %v", got, want[10:])
	}
	for _, bad := range []string{"x", ".", "1.", "1.2.3", "é.1", "zzzzzzzzzzzzzzzzzzzz.1"} {
		_, _, err := f.ListRuns(t.Context(), stromboli.RunFilter{Tenant: stromboli.DefaultTenant, Cursor: bad})
		wantErr(t, "cursor "+bad, err, stromboli.Invalid)
	}
}

// testListFilters compares every filter with the same filter in Go.
func testListFilters(t *testing.T, f *fixture) {
	kinds := []stromboli.Kind{stromboli.KindAsync, stromboli.KindSync, stromboli.KindStream}
	var all []string
	for i := range 40 {
		in := f.newRun(kinds[i%3])
		in.Run.Spec.Metadata = map[string]string{"parity": fmt.Sprint(i % 2), "all": "x"}
		if i%7 == 0 {
			in.Run.Spec.Metadata["seven"] = "yes"
		}
		if i%4 != 0 {
			in.Run.Status, in.Run.Owner = stromboli.Running, "one"
		}
		run := f.create(t, in)
		if i%4 > 1 {
			f.finish(t, run, []stromboli.Status{stromboli.Completed, stromboli.Failed}[i%2])
		}
		all = append(all, run.ID)
		f.clock.add(time.Duration(i%3) * time.Millisecond)
	}
	slices.Reverse(all)
	runs := map[string]stromboli.Run{}
	for _, id := range all {
		runs[id] = f.get(t, id)
	}
	middle := runs[all[20]]
	has := func(r stromboli.Run, labels map[string]string) bool {
		for k, v := range labels {
			if got, ok := r.Spec.Metadata[k]; !ok || got != v {
				return false
			}
		}
		return true
	}
	for _, filter := range []stromboli.RunFilter{
		{Kinds: kinds[:1]},
		{Kinds: kinds[1:]},
		{Kinds: []stromboli.Kind{"async", "async"}},
		{Kinds: []stromboli.Kind{"turn"}},
		{Statuses: []stromboli.Status{stromboli.Pending}},
		{Statuses: []stromboli.Status{stromboli.Completed, stromboli.Running, stromboli.Running}},
		{Kinds: kinds[:2], Statuses: []stromboli.Status{stromboli.Failed, stromboli.Pending}},
		{SessionID: middle.SessionID},
		{SessionID: middle.SessionID, Statuses: []stromboli.Status{"nothing"}},
		{SessionID: middle.SessionID, Metadata: map[string]string{"all": "x"}},
		{SessionID: "nobody"},
		{Since: middle.CreatedAt},
		{Since: middle.CreatedAt, Kinds: kinds[:1]},
		{Since: middle.CreatedAt, Metadata: map[string]string{"parity": "1"}},
		{Metadata: map[string]string{"parity": "1"}},
		{Metadata: map[string]string{"parity": "1", "seven": "yes"}},
		{Metadata: map[string]string{"parity": "1", "seven": "no"}},
		{Metadata: map[string]string{"all": "x", "seven": "yes"}, Kinds: kinds[1:], Statuses: []stromboli.Status{stromboli.Running, stromboli.Completed}},
	} {
		var want []string
		for _, id := range all {
			r := runs[id]
			if (len(filter.Kinds) == 0 || slices.Contains(filter.Kinds, r.Kind)) &&
				(len(filter.Statuses) == 0 || slices.Contains(filter.Statuses, r.Status)) &&
				(filter.SessionID == "" || filter.SessionID == r.SessionID) &&
				!r.CreatedAt.Before(filter.Since) && has(r, filter.Metadata) {
				want = append(want, id)
			}
		}
		for _, limit := range []int{3, 100} {
			filter.Limit = limit
			if got := f.pages(t, filter); !slices.Equal(got, want) {
				t.Errorf("%+v: %d runs %v, want %d %v", filter, len(got), got, len(want), want)
			}
		}
	}
}

func testTenants(t *testing.T, f *fixture) {
	in := f.newRun(stromboli.KindAsync)
	in.Run.Tenant = "other"
	in.Run.Spec.Metadata = map[string]string{"a": "b"}
	run := f.create(t, in)
	_, err := f.GetRun(t.Context(), stromboli.DefaultTenant, run.ID)
	wantErr(t, "get", err, stromboli.NotFound)
	_, err = f.GetSession(t.Context(), stromboli.DefaultTenant, run.SessionID)
	wantErr(t, "session", err, stromboli.NotFound)
	for _, filter := range []stromboli.RunFilter{{}, {SessionID: run.SessionID}, {Metadata: in.Run.Spec.Metadata}, {Kinds: []stromboli.Kind{run.Kind}}} {
		if got := f.pages(t, filter); len(got) != 0 {
			t.Errorf("%+v shows another tenant's run", filter)
		}
		filter.Tenant = "other"
		if got := f.pages(t, filter); !slices.Equal(got, []string{run.ID}) {
			t.Errorf("%+v: %v", filter, got)
		}
	}
	if _, _, err := f.ListRuns(t.Context(), stromboli.RunFilter{}); err == nil {
		t.Error("listed without a tenant")
	}
}

func testRetention(t *testing.T, f *fixture) {
	in := f.newRun(stromboli.KindAsync)
	in.Idempotency = &stromboli.Idempotency{Tenant: stromboli.DefaultTenant, Endpoint: "e", Key: "k", Hash: "h"}
	in.Run.Spec.Metadata = map[string]string{"a": "b"}
	in.Run.Status, in.Run.Owner = stromboli.Running, "one"
	old := f.create(t, in)
	var many []stromboli.Event
	for range 2500 {
		many = append(many, event("x", `{}`))
	}
	if _, err := f.AppendEvents(t.Context(), old.ID, 1, many); err != nil {
		t.Fatal(err)
	}
	f.finish(t, old, stromboli.Completed)
	f.clock.add(time.Hour)
	if n, err := f.deleteFinished(t); n != 0 || err != nil {
		t.Fatalf("deleted %d, %v, while a key stands for it", n, err)
	}
	f.clock.add(24 * time.Hour)
	recent, active := f.running(t), f.running(t)
	f.finish(t, recent, stromboli.Completed)
	if n, err := f.deleteFinished(t); n != 1 || err != nil {
		t.Fatalf("deleted %d, %v", n, err)
	}
	_, err := f.GetRun(t.Context(), old.Tenant, old.ID)
	wantErr(t, "deleted run", err, stromboli.NotFound)
	if evs, err := f.Events(t.Context(), old.ID, 0, 10); len(evs) != 0 || err != nil {
		t.Errorf("%d events are left, %v", len(evs), err)
	}
	if _, err := f.GetSession(t.Context(), old.Tenant, old.SessionID); err != nil {
		t.Errorf("the session went too: %v", err)
	}
	if got := f.pages(t, stromboli.RunFilter{}); !slices.Equal(got, []string{active.ID, recent.ID}) {
		t.Errorf("left %v", got)
	}
	if got := f.pages(t, stromboli.RunFilter{Metadata: map[string]string{"a": "b"}}); len(got) != 0 {
		t.Errorf("labels are left: %v", got)
	}
	again := f.newRun(stromboli.KindAsync)
	again.Idempotency = in.Idempotency
	f.create(t, again) // a key that is old means nothing
}

// testLifecycle does random things to one run and compares with a small model.
func testLifecycle(t *testing.T, f *fixture) {
	rapid.Check(t, func(rt *rapid.T) {
		run := f.create(t, f.newRun(stromboli.KindAsync))
		ctx := t.Context()
		status, epoch, seq, nextLine := stromboli.Pending, int64(0), int64(1), int64(1)
		wanted, freed := false, false
		step := func(ok bool, err error) {
			if ok != (err == nil) {
				rt.Fatalf("status %s, epoch %d: error %v, success expected: %v", status, epoch, err, ok)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"claim": func(rt *rapid.T) {
				got, ok, err := f.ClaimPending(ctx, "w")
				if err != nil || ok != (status == stromboli.Pending) {
					rt.Fatalf("claim %v, %v while %s", ok, err, status)
				}
				if ok {
					status, epoch = stromboli.Running, got.Epoch
					seq++
					if got.Phase != stromboli.PhaseCreating || got.LastSeq != seq {
						rt.Fatalf("claimed in the phase %s, with %d events", got.Phase, got.LastSeq)
					}
				}
			},
			"takeover": func(*rapid.T) {
				got, err := f.Takeover(ctx, run.ID, "w2")
				step(status == stromboli.Running, err)
				if err == nil {
					epoch = got
				}
			},
			"append": func(rt *rapid.T) {
				back := rapid.Int64Range(0, 3).Draw(rt, "back")
				off := rapid.Int64Range(0, 1).Draw(rt, "off")
				from := max(1, nextLine-back)
				got, err := f.AppendEvents(ctx, run.ID, epoch+off, []stromboli.Event{line(from, 0, `1`), line(from, 1, `2`), line(nextLine, 2, `3`)})
				step(off == 0 && !status.Terminal(), err)
				if err == nil {
					nextLine++
					seq += int64(len(got))
				}
			},
			"cancel": func(*rapid.T) {
				_, err := f.RequestCancel(ctx, stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest})
				step(!status.Terminal(), err)
				switch {
				case err == nil && status == stromboli.Pending:
					status, freed = stromboli.Cancelled, true
					seq++
				case err == nil && !wanted:
					seq++
				}
				wanted = wanted || err == nil
			},
			"finish": func(rt *rapid.T) {
				next := rapid.SampledFrom([]stromboli.Status{stromboli.Completed, stromboli.Failed, stromboli.Crashed, stromboli.Cancelled}).Draw(rt, "next")
				_, err := f.FinishRun(ctx, run.ID, epoch, ended(next))
				step(status.CanBecome(next) && (!wanted || next == stromboli.Cancelled), err)
				if err == nil {
					status, freed = next, true
					seq++
				}
			},
			"": func(rt *rapid.T) {
				got := f.get(t, run.ID)
				s, err := f.GetSession(ctx, run.Tenant, run.SessionID)
				if err != nil || got.Status != status || got.Epoch != epoch || got.LastSeq != seq || (s.ActiveRun == "") != freed {
					rt.Fatalf("run %+v, session %+v, %v; model: %s, epoch %d, sequence %d, freed %v", got, s, err, status, epoch, seq, freed)
				}
			},
		})
		if evs := f.log(t, run.ID); status.Terminal() && evs[len(evs)-1].Type != stromboli.EventRunFinished {
			rt.Fatal("run.finished is not the last event")
		}
		if !status.Terminal() { // leave nothing to be claimed by the next round
			if _, err := f.FinishRun(ctx, run.ID, epoch, ended(stromboli.Cancelled)); err != nil {
				rt.Fatal(err)
			}
		}
	})
}
