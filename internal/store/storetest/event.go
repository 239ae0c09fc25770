package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func testAppend(t *testing.T, f *fixture) {
	run := f.running(t)
	at := f.clock.Now().Add(1234567 * time.Nanosecond)
	f.clock.add(time.Hour)
	in := []stromboli.Event{event(stromboli.EventPhase, `{"phase":"creating"}`), line(1, 0, `"é"`), line(1, 1, `2`), {Type: "empty"}}
	in[0].At = at
	got, err := f.AppendEvents(t.Context(), run.ID, 1, in)
	if err != nil || len(got) != 4 {
		t.Fatalf("AppendEvents: %v, %v", got, err)
	}
	if got[0].Seq != 2 || !got[0].At.Equal(at.Truncate(time.Millisecond)) || !got[1].At.Equal(f.clock.Now()) {
		t.Errorf("first %+v", got[0])
	}
	if d := cmp.Diff(got, f.log(t, run.ID)[1:]); d != "" {
		t.Errorf("what was returned is not what is stored (-returned +stored):\n%s", d)
	}
	if string(got[3].Data) != `{}` {
		t.Errorf("no data became %q", got[3].Data)
	}
	now := f.get(t, run.ID)
	if now.LastSeq != 5 || now.LastLine != 1 || !now.UpdatedAt.Equal(f.clock.Now()) {
		t.Errorf("run %+v", now)
	}
	if in[0].Seq != 0 {
		t.Error("the caller's events were changed")
	}
	_, err = f.AppendEvents(t.Context(), "run-missing", 1, in)
	wantErr(t, "missing run", err, stromboli.NotFound)
	evs, err := f.Events(t.Context(), run.ID, 3, 1)
	if err != nil || len(evs) != 1 || evs[0].Seq != 4 {
		t.Errorf("Events after 3, one: %v, %v", evs, err)
	}
	if evs, err := f.Events(t.Context(), "run-missing", 0, 10); err != nil || len(evs) != 0 {
		t.Errorf("events of nothing: %v, %v", evs, err)
	}
}

func testAppendLines(t *testing.T, f *fixture) {
	run := f.running(t)
	add := func(want int, events ...stromboli.Event) {
		t.Helper()
		got, err := f.AppendEvents(t.Context(), run.ID, 1, events)
		if err != nil || len(got) != want {
			t.Fatalf("%d stored, %v; want %d", len(got), err, want)
		}
	}
	add(3, line(1, 0, `1`), line(1, 1, `1`), line(2, 0, `2`))
	add(0, line(1, 0, `1`), line(1, 1, `1`), line(2, 0, `2`))
	add(0, line(2, 1, `a line is stored whole or not at all`))
	add(2, line(2, 0, `2`), line(3, 0, `3`), line(7, 0, `7`))
	add(1, line(7, 0, `7`), event("x", `{}`))
	add(0)
	if evs := f.log(t, run.ID); len(evs) != 7 {
		t.Errorf("%d events", len(evs))
	}
	if now := f.get(t, run.ID); now.LastLine != 7 {
		t.Errorf("last line %d", now.LastLine)
	}
	if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(9, 0, `9`), line(8, 0, `8`)}); err == nil {
		t.Error("lines out of order were stored")
	}
	if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(9, 0, `9`), line(9, 0, `9`)}); err == nil {
		t.Error("two events with one index were stored")
	}
	if evs := f.log(t, run.ID); len(evs) != 7 {
		t.Errorf("a refused batch left %d events", len(evs))
	}
}

func testAppendLarge(t *testing.T, f *fixture) {
	run := f.running(t)
	var want [][]byte
	for i, n := range []int{8<<10 - 1, 8 << 10, 8<<10 + 1, 3 << 20, 3 << 20, 3 << 20, 1} {
		data := bytes.Repeat([]byte{'a' + byte(i)}, n)
		want = append(want, data)
		if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(int64(i+1), 0, string(data))}); err != nil {
			t.Fatal(err)
		}
	}
	evs, err := f.Events(t.Context(), run.ID, 1, 100)
	if err != nil || len(evs) == 0 || len(evs) == len(want) {
		t.Errorf("one read gave %d events, %v: it must be bounded", len(evs), err)
	}
	for i, ev := range f.log(t, run.ID)[1:] {
		if !bytes.Equal(ev.Data, want[i]) {
			t.Errorf("event %d: %d bytes, want %d", ev.Seq, len(ev.Data), len(want[i]))
		}
		data, err := f.EventData(t.Context(), run.ID, ev.Seq)
		if err != nil || !bytes.Equal(data, want[i]) {
			t.Errorf("data of event %d: %d bytes, %v", ev.Seq, len(data), err)
		}
	}
	_, err = f.EventData(t.Context(), run.ID, 99)
	wantErr(t, "data of a missing event", err, stromboli.NotFound)
}

func testAppendRace(t *testing.T, f *fixture) {
	const writers, each = 6, 30
	runs := []stromboli.Run{f.running(t), f.running(t)}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				run := runs[(w+i)%len(runs)]
				if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{event("x", fmt.Sprintf(`"%d-%d"`, w, i))}); err != nil {
					t.Error(err)
				}
				// Failing neighbours in the same commit must do no harm.
				_, _ = f.AppendEvents(t.Context(), run.ID, 9, []stromboli.Event{event("fenced", `{}`)})
				_, _ = f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(5, 1, `{}`), line(5, 1, `"twice"`)})
			}
		})
	}
	wg.Wait()
	total := 0
	for _, run := range runs {
		seen := map[string]bool{}
		for _, ev := range f.log(t, run.ID)[1:] {
			if ev.Type != "x" || seen[string(ev.Data)] {
				t.Errorf("event %d is %s %s", ev.Seq, ev.Type, ev.Data)
			}
			seen[string(ev.Data)] = true
		}
		total += len(seen)
	}
	if total != writers*each {
		t.Errorf("%d events, want %d", total, writers*each)
	}
}

func testCommitHook(t *testing.T, f *fixture) {
	var mu sync.Mutex
	told := map[string][]stromboli.Event{}
	f.OnCommit(func(id string, events []stromboli.Event) {
		mu.Lock()
		defer mu.Unlock()
		told[id] = append(told[id], events...)
	})
	run := f.running(t)
	if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(1, 0, `1`), line(2, 0, `2`)}); err != nil {
		t.Fatal(err)
	}
	_, _ = f.AppendEvents(t.Context(), run.ID, 7, []stromboli.Event{line(3, 0, `fenced`)})
	_, _ = f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(3, 0, `3`), line(3, 0, `3`)})
	if _, err := f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Events: []stromboli.Event{event("x", `{}`)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest}); err != nil {
		t.Fatal(err)
	}
	f.finish(t, run, stromboli.Cancelled)
	mu.Lock()
	defer mu.Unlock()
	if d := cmp.Diff(f.log(t, run.ID), told[run.ID]); d != "" {
		t.Errorf("told other than stored (-stored +told):\n%s", d)
	}
}

func testCancelledCaller(t *testing.T, f *fixture) {
	run := f.running(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 20 {
		// Either it did not happen and says so, or it happened.
		before := f.get(t, run.ID).LastSeq
		_, err := f.AppendEvents(ctx, run.ID, 1, []stromboli.Event{event("x", strings.Repeat("1", i+1))})
		if err == nil {
			before++
		} else {
			wantErr(t, "cancelled", err, context.Canceled)
		}
		if _, err := f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{event("y", `{}`)}); err != nil {
			t.Fatal(err)
		}
		if now := f.get(t, run.ID).LastSeq; now != before+1 {
			t.Fatalf("last sequence %d, want %d", now, before+1)
		}
	}
}
