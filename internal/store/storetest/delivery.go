package storetest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

// hooked makes a run whose end is to be told; status is how it begins.
func (f *fixture) hooked(t *testing.T, url string, status stromboli.Status) stromboli.Run {
	t.Helper()
	in := f.newRun(stromboli.KindAsync)
	in.Run.Spec.WebhookURL, in.Run.Status, in.Run.Owner = url, status, "one"
	return f.create(t, in)
}

// owed ends such a run.
func (f *fixture) owed(t *testing.T, url string) stromboli.Run {
	t.Helper()
	return f.finish(t, f.hooked(t, url, stromboli.Running), stromboli.Completed)
}

func (f *fixture) deliveries(t *testing.T, filter stromboli.DeliveryFilter) []stromboli.Delivery {
	t.Helper()
	if filter.Tenant == "" {
		filter.Tenant = stromboli.DefaultTenant
	}
	list, _, err := f.ListDeliveries(t.Context(), filter)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (f *fixture) claim(t *testing.T, most, perHost int) []stromboli.ClaimedDelivery {
	t.Helper()
	all, err := f.ClaimDeliveries(t.Context(), most, perHost)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// testOutbox: whichever way a run ends, what its webhook is told is written with
// the end, once; a run without a webhook has nothing to tell.
func testOutbox(t *testing.T, f *fixture) {
	const url = "https://Hooks.Example.com/end?key=secret"
	ends := map[string]func(run stromboli.Run) error{
		"completed": func(run stromboli.Run) error {
			_, err := f.FinishRun(t.Context(), run.ID, 1, ended(stromboli.Completed))
			return err
		},
		"failed": func(run stromboli.Run) error {
			_, err := f.FinishRun(t.Context(), run.ID, 1, ended(stromboli.Failed))
			return err
		},
		"crashed": func(run stromboli.Run) error { // by the server that took it over
			epoch, err := f.Takeover(t.Context(), run.ID, "two")
			if err == nil {
				_, err = f.FinishRun(t.Context(), run.ID, epoch, ended(stromboli.Crashed))
			}
			return err
		},
		"cancelled": func(run stromboli.Run) error {
			_, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest})
			if err == nil {
				_, err = f.FinishRun(t.Context(), run.ID, 1, ended(stromboli.Cancelled))
			}
			return err
		},
		"cancelled while pending": func(run stromboli.Run) error {
			_, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest})
			return err
		},
	}
	for name, end := range ends {
		begin := stromboli.Running
		if strings.HasSuffix(name, "pending") {
			begin = stromboli.Pending
		}
		run := f.hooked(t, url, begin)
		if got := f.deliveries(t, stromboli.DeliveryFilter{RunID: run.ID}); len(got) != 0 {
			t.Fatalf("%s: told before the end: %+v", name, got)
		}
		if _, err := f.FinishRun(t.Context(), run.ID, 77, ended(stromboli.Failed)); err == nil {
			t.Fatal("finished by nobody")
		}
		if err := end(run); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		list := f.deliveries(t, stromboli.DeliveryFilter{RunID: run.ID})
		if len(list) != 1 {
			t.Fatalf("%s: %+v", name, list)
		}
		want := stromboli.Delivery{
			ID: list[0].ID, Tenant: run.Tenant, RunID: run.ID, Host: "hooks.example.com:443", Status: stromboli.DeliveryPending,
			NextAt: f.clock.Now(), CreatedAt: f.clock.Now(), UpdatedAt: f.clock.Now(),
		}
		if d := cmp.Diff(want, list[0]); d != "" || list[0].ID == "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	f.finish(t, f.running(t), stromboli.Completed)
	claimed := f.claim(t, 100, 100)
	if len(claimed) != len(ends) {
		t.Fatalf("%d deliveries for %d runs", len(claimed), len(ends))
	}
	for _, c := range claimed {
		run := f.get(t, c.RunID)
		var p stromboli.WebhookPayload
		if err := json.Unmarshal(c.Body, &p); err != nil || p.JobID != stromboli.JobID(run.ID) || p.Status != run.Status || p.SessionID != run.SessionID || c.URL != url || c.Attempts != 1 || c.Tries != 1 {
			t.Errorf("%s %+v of %s, %v", c.Body, c.Delivery, run.Status, err)
		}
	}
}

// testClaimDeliveries: bounded for each host, oldest first, and fenced by the
// attempt's number.
func testClaimDeliveries(t *testing.T, f *fixture) {
	var slow []string
	for range 5 {
		slow = append(slow, f.owed(t, "http://slow.example/").ID)
		f.clock.add(time.Second)
	}
	fast := f.owed(t, "http://fast.example/").ID
	first := f.claim(t, 10, 2)
	if len(first) != 3 || first[0].RunID != slow[0] || first[1].RunID != slow[1] || first[2].RunID != fast {
		t.Fatalf("%+v", first)
	}
	if more := f.claim(t, 10, 2); len(more) != 0 {
		t.Fatalf("claimed again: %+v", more)
	}
	if _, ok, err := f.NextDelivery(t.Context(), 2); ok || err != nil {
		t.Errorf("there is something for a host that has enough: %v", err)
	}
	if at, ok, err := f.NextDelivery(t.Context(), 3); !ok || err != nil || at.After(f.clock.Now()) {
		t.Errorf("next: %s, %v, %v", at, ok, err)
	}
	if n := len(f.deliveries(t, stromboli.DeliveryFilter{Statuses: []stromboli.DeliveryStatus{stromboli.DeliverySending}})); n != 3 {
		t.Errorf("%d are being sent", n)
	}
	done := stromboli.DeliveryResult{Status: stromboli.DeliveryDelivered, HTTPStatus: 204}
	d := first[0]
	wantErr(t, "another attempt's end", f.FinishDelivery(t.Context(), d.ID, 2, done), stromboli.Conflict)
	if err := f.FinishDelivery(t.Context(), d.ID, 1, done); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "twice", f.FinishDelivery(t.Context(), d.ID, 1, done), stromboli.Conflict)
	got := f.deliveries(t, stromboli.DeliveryFilter{RunID: slow[0]})[0]
	if got.Status != stromboli.DeliveryDelivered || got.LastStatus != 204 || !got.NextAt.IsZero() || !got.FinishedAt.Equal(f.clock.Now()) {
		t.Errorf("%+v", got)
	}
	retry := f.clock.Now().Add(time.Hour)
	if err := f.FinishDelivery(t.Context(), first[1].ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryPending, NextAt: retry, HTTPStatus: 500, Error: "it answered 500"}); err != nil {
		t.Fatal(err)
	}
	got = f.deliveries(t, stromboli.DeliveryFilter{RunID: slow[1]})[0]
	if got.Status != stromboli.DeliveryPending || got.LastStatus != 500 || got.LastError != "it answered 500" || !got.NextAt.Equal(retry) {
		t.Errorf("%+v", got)
	}
	second := f.claim(t, 10, 2)
	if len(second) != 2 || second[0].RunID != slow[2] || second[1].RunID != slow[3] {
		t.Fatalf("%+v", second)
	}
	// Broken off by us: it counts as an attempt, not as a try.
	if err := f.FinishDelivery(t.Context(), second[0].ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryPending, NextAt: f.clock.Now(), Untold: true}); err != nil {
		t.Fatal(err)
	}
	if err := f.ReleaseDeliveries(t.Context()); err != nil { // as after kill -9
		t.Fatal(err)
	}
	var again []string
	for _, c := range f.claim(t, 10, 10) {
		again = append(again, c.RunID)
		if c.RunID == slow[2] && (c.Tries != 1 || c.Attempts != 2) {
			t.Errorf("broken off: %+v", c)
		}
	}
	want := []string{slow[2], slow[3], slow[4], fast}
	slices.Sort(again)
	slices.Sort(want)
	if d := cmp.Diff(want, again); d != "" {
		t.Errorf("after the release (-want +got):\n%s", d)
	}
	at, ok, err := f.NextDelivery(t.Context(), 10)
	if !ok || err != nil || !at.Equal(retry) {
		t.Errorf("next: %s, %v, %v", at, ok, err)
	}
	f.clock.add(-90 * 24 * time.Hour) // somebody sets the clock back
	if at, ok, _ := f.NextDelivery(t.Context(), 10); !ok || at.After(f.clock.Now()) {
		t.Errorf("next by a clock that was set back: %s", at)
	}
	if late := f.claim(t, 10, 10); len(late) != 1 || late[0].RunID != slow[1] || late[0].Tries != 2 {
		t.Errorf("by a clock that was set back: %+v", late)
	}
}

func testRedeliver(t *testing.T, f *fixture) {
	run := f.owed(t, "http://a.example/")
	d := f.claim(t, 1, 1)[0]
	_, err := f.RedeliverDelivery(t.Context(), run.Tenant, d.ID)
	wantErr(t, "while it is being sent", err, stromboli.Conflict)
	if err := f.FinishDelivery(t.Context(), d.ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryDead, Error: "no"}); err != nil {
		t.Fatal(err)
	}
	_, err = f.RedeliverDelivery(t.Context(), "other", d.ID)
	wantErr(t, "another tenant's", err, stromboli.NotFound)
	_, err = f.RedeliverDelivery(t.Context(), run.Tenant, "msg-none")
	wantErr(t, "missing", err, stromboli.NotFound)
	select {
	case <-f.DeliveryDue():
	default:
	}
	got, err := f.RedeliverDelivery(t.Context(), run.Tenant, d.ID)
	if err != nil || got.Status != stromboli.DeliveryPending || got.LastError != "no" || !got.FinishedAt.IsZero() {
		t.Fatalf("%+v, %v", got, err)
	}
	select {
	case <-f.DeliveryDue():
	default:
		t.Error("nobody is woken")
	}
	again := f.claim(t, 1, 1)
	if len(again) != 1 || again[0].ID != d.ID || again[0].Attempts != 2 || again[0].Tries != 1 || string(again[0].Body) != string(d.Body) {
		t.Errorf("%+v", again)
	}
	// One that waits for its next attempt is made due.
	if err := f.FinishDelivery(t.Context(), d.ID, 2, stromboli.DeliveryResult{Status: stromboli.DeliveryPending, NextAt: f.clock.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.RedeliverDelivery(t.Context(), run.Tenant, d.ID); err != nil || !got.NextAt.Equal(f.clock.Now()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func testListDeliveries(t *testing.T, f *fixture) {
	var ids []string
	for i := range 25 {
		ids = append(ids, f.owed(t, "http://h"+strconv.Itoa(i)+".example/").ID)
	}
	for _, c := range f.claim(t, 5, 1) {
		if err := f.FinishDelivery(t.Context(), c.ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryDead}); err != nil {
			t.Fatal(err)
		}
	}
	for _, statuses := range [][]stromboli.DeliveryStatus{nil, {stromboli.DeliveryPending, stromboli.DeliveryDead, stromboli.DeliveryDead}} {
		var got, late []string
		for cursor := ""; ; {
			page, next, err := f.ListDeliveries(t.Context(), stromboli.DeliveryFilter{Tenant: stromboli.DefaultTenant, Statuses: statuses, Limit: 10, Cursor: cursor})
			if err != nil || len(page) > 10 {
				t.Fatal(len(page), err)
			}
			for _, d := range page {
				got = append(got, d.RunID)
			}
			if cursor = next; next == "" {
				break
			}
			late = append(late, f.owed(t, "http://late.example/").ID) // it doesn't shift the pages
		}
		want := slices.Clone(ids)
		slices.Reverse(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%v (-want +got):\n%s", statuses, d)
		}
		ids = append(ids, late...)
	}
	if n := len(f.deliveries(t, stromboli.DeliveryFilter{Statuses: []stromboli.DeliveryStatus{stromboli.DeliveryDead}})); n != 5 {
		t.Errorf("%d are dead", n)
	}
	if n := len(f.deliveries(t, stromboli.DeliveryFilter{Tenant: "other"})); n != 0 {
		t.Errorf("another tenant sees %d", n)
	}
	if n := len(f.deliveries(t, stromboli.DeliveryFilter{RunID: ids[0], Tenant: "other"})); n != 0 {
		t.Errorf("another tenant sees %d of a run", n)
	}
	for _, cursor := range []string{"!", "-1", "zzzzzzzzzzzzzzzzzz"} {
		_, _, err := f.ListDeliveries(t.Context(), stromboli.DeliveryFilter{Tenant: "a", Cursor: cursor})
		wantErr(t, "cursor "+cursor, err, stromboli.Invalid)
	}
}

// testForgetDeliveries: a session that is deleted takes along what its runs'
// webhooks are to be told, and no other's.
func testForgetDeliveries(t *testing.T, f *fixture) {
	gone, stays := f.owed(t, "http://a.example/"), f.owed(t, "http://a.example/")
	f.clock.add(time.Hour)
	if n, err := f.deleteFinished(t); n != 2 || err != nil { // the delivery doesn't need its run
		t.Fatal(n, err)
	}
	d := f.claim(t, 1, 1)[0]
	if d.RunID != gone.ID {
		t.Fatalf("%+v", d)
	}
	if _, err := f.DeleteSession(t.Context(), gone.Tenant, gone.SessionID); err != nil {
		t.Fatal(err)
	}
	if err := f.ForgetSession(t.Context(), gone.SessionID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "the attempt that was being made", f.FinishDelivery(t.Context(), d.ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryDelivered}), stromboli.Conflict)
	if list := f.deliveries(t, stromboli.DeliveryFilter{}); len(list) != 1 || list[0].RunID != stays.ID {
		t.Errorf("%+v", list)
	}
	if c := f.claim(t, 10, 1); len(c) != 1 || c[0].RunID != stays.ID { // the host's slot is free again
		t.Errorf("%+v", c)
	}
}

// testDeliveryRetention: what has ended goes after a while, with or without its
// run; what waits stays, and outlives its run.
func testDeliveryRetention(t *testing.T, f *fixture) {
	var runs []string
	for range 3 {
		runs = append(runs, f.owed(t, "http://a.example/").ID)
	}
	f.clock.add(time.Hour)
	if n, err := f.deleteFinished(t); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	for _, c := range f.claim(t, 2, 2) {
		if err := f.FinishDelivery(t.Context(), c.ID, 1, stromboli.DeliveryResult{Status: stromboli.DeliveryDelivered}); err != nil {
			t.Fatal(err)
		}
		f.clock.add(time.Minute)
	}
	if n, err := f.DeleteFinishedDeliveries(t.Context(), f.clock.Now().Add(-time.Minute), 10); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := f.DeleteFinishedDeliveries(t.Context(), f.clock.Now(), 10); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	list := f.deliveries(t, stromboli.DeliveryFilter{})
	if len(list) != 1 || list[0].RunID != runs[2] {
		t.Fatalf("%+v", list)
	}
	if c := f.claim(t, 1, 1); len(c) != 1 || len(c[0].Body) == 0 {
		t.Errorf("%+v", c)
	}
}
