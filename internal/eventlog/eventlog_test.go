package eventlog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted is a store that counts the reads of events.
type counted struct {
	*store.Store
	reads atomic.Int64
}

func (c *counted) Events(ctx context.Context, id string, after int64, limit int) ([]stromboli.Event, error) {
	c.reads.Add(1)
	return c.Store.Events(ctx, id, after, limit)
}

func open(tb testing.TB) (*counted, *eventlog.Log) {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Config{Path: filepath.Join(tb.TempDir(), "x.db")})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	c := &counted{Store: s}
	return c, eventlog.New(c)
}

func create(tb testing.TB, s *counted) string {
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
	return run.ID
}

func add(tb testing.TB, l *eventlog.Log, id string, n int) {
	tb.Helper()
	if _, err := l.Append(context.Background(), id, 1, make([]stromboli.Event, n)); err != nil {
		tb.Fatal(err)
	}
}

func finish(tb testing.TB, s *counted, id string) {
	tb.Helper()
	if _, err := s.FinishRun(context.Background(), id, 1, stromboli.RunFinish{Outcome: stromboli.Outcome{Status: stromboli.Completed}}); err != nil {
		tb.Fatal(err)
	}
}

// brief is an event in short: its sequence, or what was truncated.
func brief(ev stromboli.Event) string {
	if ev.Type != stromboli.EventTruncated {
		return fmt.Sprint(ev.Seq)
	}
	var d stromboli.TruncatedData
	_ = json.Unmarshal(ev.Data, &d)
	return fmt.Sprintf("[%d-%d→%d]", d.From, d.To, ev.Seq)
}

func follow(ctx context.Context, l *eventlog.Log, id string, after int64) (string, error) {
	var out []string
	for ev, err := range l.Follow(ctx, id, after) {
		if err != nil {
			return strings.Join(out, " "), err
		}
		out = append(out, brief(ev))
	}
	return strings.Join(out, " "), nil
}

func TestPositions(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	add(t, l, id, 3)
	finish(t, s, id)
	for after, want := range map[int64]string{
		-1: "1 2 3 4 5", 0: "1 2 3 4 5", 3: "4 5", 4: "5", 5: "", 6: "[6-6→5]", 99: "[6-99→5]",
	} {
		got, err := follow(t.Context(), l, id, after)
		if got != want || err != nil {
			t.Errorf("after %d: %q, %v; want %q", after, got, err, want)
		}
	}
	if _, err := follow(t.Context(), l, "run-missing", 0); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("missing run: %v", err)
	}
}

func TestBeyondTheEndOfALiveRun(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	var got []string
	for ev, err := range l.Follow(t.Context(), id, 10) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, brief(ev))
		if len(got) == 1 {
			add(t, l, id, 1)
			finish(t, s, id)
		}
	}
	if s := strings.Join(got, " "); s != "[2-10→1] 2 3" {
		t.Errorf("got %s", s)
	}
}

func TestEndOfContextAndOfReader(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var last error
	for _, err := range l.Follow(ctx, id, 0) {
		last = err
		n++
		cancel() // after the first event: it waits for the second
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d pairs, last error %v", n, last)
	}
	for _, err := range l.Follow(t.Context(), id, 0) {
		if err != nil {
			t.Error(err)
		}
		break
	}
	if got := l.Followed(); got != 0 {
		t.Errorf("%d runs are still followed", got)
	}
}

// TestOnEnd: who asks is told of each end once, followed or not.
func TestOnEnd(t *testing.T) {
	s, l := open(t)
	var ended []string
	l.OnEnd(func(id string) { ended = append(ended, id) })
	a, b := create(t, s), create(t, s)
	add(t, l, a, 3)
	finish(t, s, b)
	finish(t, s, a)
	if got := strings.Join(ended, " "); got != b+" "+a {
		t.Errorf("told of %q, want %s and %s", got, b, a)
	}
}

// deleted is a store whose oldest events are gone, or all of them.
type deleted struct {
	eventlog.Store
	upTo int64
}

func (d deleted) Events(ctx context.Context, id string, after int64, limit int) ([]stromboli.Event, error) {
	return d.Store.Events(ctx, id, max(after, d.upTo), limit)
}

func TestRetired(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	add(t, l, id, 3)
	finish(t, s, id)
	for upTo, want := range map[int64]string{2: "[1-2→2] 3 4 5", 4: "[1-4→4] 5", 5: "[1-5→5]"} {
		got, err := follow(t.Context(), eventlog.New(deleted{s, upTo}), id, 0)
		if got != want || err != nil {
			t.Errorf("without 1 to %d: %q, %v; want %q", upTo, got, err, want)
		}
	}
}

func TestWakeFromOutside(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	var got []string
	for ev, err := range l.Follow(t.Context(), id, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, brief(ev))
		if len(got) == 1 { // stored without telling this log, as another server would
			s.OnCommit(func(string, []stromboli.Event) {})
			add(t, l, id, 2)
			finish(t, s, id)
			l.Wake(id)
			l.Wake("run-that-nobody-follows")
		}
	}
	if s := strings.Join(got, " "); s != "1 2 3 4" {
		t.Errorf("got %s", s)
	}
}

// TestTail: who follows a live run closely reads no events from the store.
func TestTail(t *testing.T) {
	s, l := open(t)
	id := create(t, s)
	n := 0
	for ev, err := range l.Follow(t.Context(), id, 0) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if ev.Seq%2 == 1 && n < 601 { // 1, 3, 5…: all that was there is read
			add(t, l, id, 2)
		} else if n == 601 {
			finish(t, s, id)
		}
	}
	if got := s.reads.Load(); n != 602 || got != 1 {
		t.Errorf("%d events with %d reads of the store, want 602 with 1", n, got)
	}
}

// TestFollowers has many followers, quick and slow, early and late, of runs that
// several write to: each gets every event once and in order.
func TestFollowers(t *testing.T) {
	s, l := open(t)
	const runs, writers, batches, followers = 2, 3, 50, 10
	var wg sync.WaitGroup
	for range runs {
		id := create(t, s)
		var total atomic.Int64
		var writing sync.WaitGroup
		for w := range writers {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			writing.Go(func() {
				for range batches {
					events := make([]stromboli.Event, 1+rnd.IntN(8))
					for i := range events {
						size := 10
						if rnd.IntN(20) == 0 {
							size = 200 << 10 // overflows the tail soon
						}
						events[i].Data = json.RawMessage(`"` + strings.Repeat("d", size) + `"`)
					}
					if _, err := l.Append(t.Context(), id, 1, events); err != nil {
						t.Error(err)
						return
					}
					total.Add(int64(len(events)))
				}
			})
		}
		for range followers {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), 2))
			wg.Go(func() { followInPieces(t, s, l, id, rnd, &total) })
		}
		wg.Go(func() {
			writing.Wait()
			finish(t, s, id)
		})
	}
	wg.Wait()
	if got := l.Followed(); got != 0 {
		t.Errorf("%d runs are still followed", got)
	}
}

// followInPieces reads a run to its end, now and then leaving and coming back
// where it was.
func followInPieces(t *testing.T, s *counted, l *eventlog.Log, id string, rnd *rand.Rand, total *atomic.Int64) {
	var pos int64
	for over := false; !over; {
		pause := rnd.IntN(400)
		for ev, err := range l.Follow(t.Context(), id, pos) {
			if err != nil {
				t.Error(err)
				return
			}
			if ev.Seq != pos+1 || ev.Type == stromboli.EventTruncated || len(ev.Data) == 0 {
				t.Errorf("event %d %s after %d", ev.Seq, ev.Type, pos)
				return
			}
			pos = ev.Seq
			if over = ev.Type == stromboli.EventRunFinished; over {
				continue
			}
			if rnd.IntN(8) == 0 {
				if last, _, err := s.LastEvent(t.Context(), id); err != nil || last < ev.Seq {
					t.Errorf("event %d was handed out before its commit (%d), %v", ev.Seq, last, err)
					return
				}
			}
			if pause--; pause == 0 {
				break
			}
		}
	}
	if want := total.Load() + 2; pos != want {
		t.Errorf("ended at %d, want %d", pos, want)
	}
}

func BenchmarkFollow(b *testing.B) {
	s, l := open(b)
	id := create(b, s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for _, err := range l.Follow(b.Context(), id, 0) {
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	for b.Loop() {
		add(b, l, id, 10)
	}
	finish(b, s, id)
	wg.Wait()
	b.ReportMetric(float64(s.reads.Load())/float64(b.N), "reads/op")
}
