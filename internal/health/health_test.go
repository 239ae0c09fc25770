package health_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/health"
)

func run(t *testing.T, cfg health.Config) *health.Monitor {
	t.Helper()
	m := health.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return m
}

// until asks until the first part is as wanted.
func until(t *testing.T, m *health.Monitor, what string, ok func(health.State) bool) health.State {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if s := m.Ask(t.Context())[0]; ok(s) {
			return s
		}
	}
	t.Fatalf("waited in vain for: %s; now %+v", what, m.Known()[0])
	return health.State{}
}

// TestStates: what is wrong is told with whether runs can start, changes are
// told once each, and what has passed is gone.
func TestStates(t *testing.T) {
	var fault atomic.Pointer[error]
	set := func(err error) { fault.Store(&err) }
	set(nil)
	var mu sync.Mutex
	var told []string
	m := run(t, health.Config{
		Parts: []health.Part{{Name: "a", Look: func(context.Context) error { return *fault.Load() }}},
		Fresh: time.Nanosecond, Patience: 10 * time.Second,
		Changed: func(before, now health.State) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, before.Fault+">"+now.Fault)
		},
	})
	if s := m.Ask(t.Context())[0]; s != (health.State{Name: "a", Known: true}) {
		t.Errorf("%+v", s)
	}
	set(errors.New("broken"))
	if s := until(t, m, "the fault", func(s health.State) bool { return s.Fault != "" }); s != (health.State{Name: "a", Known: true, Fault: "broken", Blocks: true}) {
		t.Errorf("%+v", s)
	}
	set(&health.Impaired{Err: errors.New("slow")})
	if s := until(t, m, "the other fault", func(s health.State) bool { return s.Fault == "slow" }); s.Blocks {
		t.Errorf("%+v", s)
	}
	set(nil)
	until(t, m, "the recovery", func(s health.State) bool { return s.Fault == "" && !s.Blocks })
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(told, " "); got != "> >broken broken>slow slow>" {
		t.Errorf("told: %s", got)
	}
}

// TestUnasked: faults and recoveries are found without anybody asking.
func TestUnasked(t *testing.T) {
	changed := make(chan health.State, 10)
	var broken atomic.Bool
	run(t, health.Config{
		Parts: []health.Part{{Name: "a", Look: func(context.Context) error {
			if broken.Load() {
				return errors.New("broken")
			}
			return nil
		}}},
		Every: time.Millisecond, Again: time.Millisecond,
		Changed: func(_, now health.State) { changed <- now },
	})
	if s := <-changed; s.Fault != "" {
		t.Errorf("%+v", s)
	}
	broken.Store(true)
	if s := <-changed; s.Fault != "broken" {
		t.Errorf("%+v", s)
	}
	broken.Store(false)
	if s := <-changed; s.Fault != "" {
		t.Errorf("%+v", s)
	}
}

// TestHangs: a part that hangs, whether or not it heeds its deadline, is told of
// as one that isn't well; the others are looked at meanwhile, and who asks
// doesn't wait for it.
func TestHangs(t *testing.T) {
	for name, heeds := range map[string]bool{"heeds its deadline": true, "doesn't": false} {
		t.Run(name, func(t *testing.T) {
			var hangs atomic.Bool
			goOn := make(chan struct{})
			var others atomic.Int64
			m := run(t, health.Config{
				Parts: []health.Part{
					{Name: "hangs", Look: func(ctx context.Context) error {
						if !hangs.Load() {
							return nil
						}
						if !heeds {
							<-goOn
							return nil
						}
						select {
						case <-goOn:
							return nil
						case <-ctx.Done():
							return ctx.Err()
						}
					}},
					{Name: "other", Look: func(context.Context) error { others.Add(1); return nil }},
				},
				Fresh: time.Nanosecond, Patience: 5 * time.Millisecond, Limit: 50 * time.Millisecond,
			})
			until(t, m, "the first look", func(s health.State) bool { return s.Known && s.Fault == "" })
			hangs.Store(true)
			s := until(t, m, "the fault", func(s health.State) bool { return s.Fault != "" })
			if !s.Blocks || !strings.Contains(s.Fault, "hasn't answered") {
				t.Errorf("%+v", s)
			}
			before := others.Load()
			until(t, m, "looks at the other part", func(health.State) bool { return others.Load() > before+3 })
			hangs.Store(false)
			close(goOn)
			until(t, m, "the recovery", func(s health.State) bool { return s.Fault == "" })
		})
	}
}

// TestUnknown: what nobody has looked at is not taken to be well.
func TestUnknown(t *testing.T) {
	m := health.New(health.Config{Parts: []health.Part{{Name: "a"}}, Patience: time.Millisecond})
	if s := m.Ask(t.Context())[0]; s.Known || !s.Blocks || s.Fault == "" {
		t.Errorf("%+v", s)
	}
}

// TestManyAsk: however many ask, a part that is well is looked at once.
func TestManyAsk(t *testing.T) {
	var looks atomic.Int64
	m := run(t, health.Config{
		Parts: []health.Part{{Name: "a", Look: func(context.Context) error { looks.Add(1); return nil }}},
		Every: time.Hour, Fresh: time.Hour, Patience: 10 * time.Second,
	})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if s := m.Ask(t.Context())[0]; s.Fault != "" {
				t.Errorf("%+v", s)
			}
		})
	}
	all.Wait()
	if n := looks.Load(); n > 2 { // the first may have been asked for and have been due
		t.Errorf("%d looks", n)
	}
}
