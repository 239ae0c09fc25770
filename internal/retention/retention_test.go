package retention_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/retention"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestKindsDontDependOnEachOther(t *testing.T) {
	var told []string
	kind := func(name string, age time.Duration, err error) retention.Kind {
		return retention.Kind{Name: name, Setting: "S", Age: age, Sweep: func(_ context.Context, before time.Time, dry bool) (retention.Swept, error) {
			told = append(told, name)
			if since := time.Since(before); since < age || since > age+time.Minute || dry {
				t.Errorf("%s: before %v, dry %v", name, before, dry)
			}
			return retention.Swept{Count: 2, Bytes: 3}, err
		}}
	}
	expiring := kind("expiring", 0, nil)
	expiring.Setting = ""
	s := retention.New([]retention.Kind{
		kind("broken", time.Hour, errors.New("no disk")), kind("kept", 0, nil), kind("well", 2*time.Hour, nil), expiring,
	}, quiet())
	results, err := s.Sweep(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(told, " "); got != "broken well expiring" {
		t.Errorf("swept %s", got)
	}
	if r := results[0]; r.Error != "no disk" || r.Count != 2 || r.Age != "1h0m0s" {
		t.Errorf("broken: %+v", r)
	}
	if r := results[1]; r.Age != "for ever" || r.Count != 0 {
		t.Errorf("kept: %+v", r)
	}
	if r := results[3]; r.Age != "until it expires" || r.Bytes != 3 {
		t.Errorf("expiring: %+v", r)
	}
}

func TestSweepsDontRunAtOnce(t *testing.T) {
	var now, most atomic.Int32
	s := retention.New([]retention.Kind{{Name: "k", Sweep: func(ctx context.Context, _ time.Time, _ bool) (retention.Swept, error) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
		return retention.Swept{}, nil
	}}}, quiet())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.Sweep(t.Context(), false); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d sweeps at once", most.Load())
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := s.Sweep(ended, false); err == nil {
		t.Error("a sweep for nobody")
	}
}

func TestEachPassesOverFaults(t *testing.T) {
	const n = 450 // more than two pages
	list := func(_ context.Context, after, limit int) (page []int, _ error) {
		for i := after + 1; i <= min(after+limit, n); i++ {
			page = append(page, i)
		}
		return page, nil
	}
	run := func(bad func(int) bool) (swept retention.Swept, tried int, err error) {
		swept, err = retention.Each(t.Context(), list, func(_ context.Context, i int) (int64, bool, error) {
			tried++
			if bad(i) {
				return 0, false, errors.New("in use")
			}
			return 10, true, nil
		})
		return swept, tried, err
	}
	if swept, _, err := run(func(int) bool { return false }); swept.Count != n || swept.Bytes != 10*n || err != nil {
		t.Errorf("%+v, %v", swept, err)
	}
	if swept, _, err := run(func(i int) bool { return i == 7 || i == 300 }); swept.Count != n-2 || err == nil {
		t.Errorf("with two faults: %+v, %v", swept, err)
	}
	if swept, _, err := run(func(i int) bool { return i <= 5 }); swept.Count != n-5 || err == nil {
		t.Errorf("where the oldest fail: %+v, %v", swept, err)
	}
	if swept, tried, err := run(func(int) bool { return true }); swept.Count != 0 || err == nil || tried != 100 {
		t.Errorf("where all fail: %+v, %v, %d tries", swept, err, tried)
	}
}
