package runner_test

import (
	"context"
	"errors"
	"sync"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/store"
)

var errInjected = errors.New("the disk made a noise")

// faults is a store that fails, or whose server dies, at a chosen write.
type faults struct {
	*store.Store
	cancel context.CancelFunc // ends the server

	mu     sync.Mutex
	writes int
	// dieAt is the write at whose end the server dies: from then on nothing is
	// written. before: the write itself isn't any more.
	dieAt  int
	before bool
	dead   bool
	// fail is asked before each write.
	fail func(op string) error
	// create is called before a run is created.
	create func(stromboli.NewRun)
	// after is called after each write that succeeded.
	after func(op string)
}

// dies submits a run to a server that dies at one of its writes, and reports
// whether it did before the run had ended.
func (w *world) dies(at int, before bool, script string, change ...func(*stromboli.RunSpec)) (id string, died bool) {
	w.t.Helper()
	f := &faults{dieAt: at, before: before}
	l := w.start(options{faults: f})
	id = l.submit(script, change...).ID
	l.eventually("the run has ended or the server died", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.dead || l.get(id).Status.Terminal()
	})
	l.stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	return id, f.dead
}

func (f *faults) begin(op string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errInjected
	}
	f.writes++
	if f.writes == f.dieAt && f.before {
		f.dead = true
		f.cancel()
		return errInjected
	}
	if f.fail != nil {
		return f.fail(op)
	}
	return nil
}

func (f *faults) end(op string, err error) error {
	f.mu.Lock()
	after := f.after
	if f.writes == f.dieAt && !f.dead {
		f.dead = true
		f.cancel()
		err = errInjected
	}
	f.mu.Unlock()
	if err == nil && after != nil {
		after(op)
	}
	return err
}

func (f *faults) CreateRun(ctx context.Context, n stromboli.NewRun) (stromboli.Run, bool, error) {
	f.mu.Lock()
	create := f.create
	f.mu.Unlock()
	if create != nil {
		create(n)
	}
	return f.Store.CreateRun(ctx, n)
}

func (f *faults) UpdateRun(ctx context.Context, id string, epoch int64, u stromboli.RunUpdate) ([]stromboli.Event, error) {
	if err := f.begin("update"); err != nil {
		return nil, err
	}
	events, err := f.Store.UpdateRun(context.WithoutCancel(ctx), id, epoch, u)
	return events, f.end("update", err)
}

func (f *faults) FinishRun(ctx context.Context, id string, epoch int64, fin stromboli.RunFinish) ([]stromboli.Event, error) {
	if err := f.begin("finish"); err != nil {
		return nil, err
	}
	events, err := f.Store.FinishRun(context.WithoutCancel(ctx), id, epoch, fin)
	return events, f.end("finish", err)
}

func (f *faults) ClaimPending(ctx context.Context, owner string) (stromboli.Run, bool, error) {
	if err := f.begin("claim"); err != nil {
		return stromboli.Run{}, false, err
	}
	run, ok, err := f.Store.ClaimPending(ctx, owner)
	return run, ok, f.end("claim", err)
}

func (f *faults) Takeover(ctx context.Context, id, owner string) (int64, error) {
	if err := f.begin("takeover"); err != nil {
		return 0, err
	}
	epoch, err := f.Store.Takeover(ctx, id, owner)
	return epoch, f.end("takeover", err)
}

// faultyLog has the same faults.
type faultyLog struct {
	*eventlog.Log
	f *faults
}

func (l faultyLog) Append(ctx context.Context, id string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error) {
	if err := l.f.begin("append"); err != nil {
		return nil, err
	}
	events, err := l.Log.Append(context.WithoutCancel(ctx), id, epoch, events)
	return events, l.f.end("append", err)
}

func (f *faults) DeleteSession(ctx context.Context, tenant, name string) (stromboli.Session, error) {
	if err := f.begin("delete session"); err != nil {
		return stromboli.Session{}, err
	}
	s, err := f.Store.DeleteSession(ctx, tenant, name)
	return s, f.end("delete session", err)
}

func (f *faults) ForgetSession(ctx context.Context, id string) error {
	if err := f.begin("forget session"); err != nil {
		return err
	}
	return f.end("forget session", f.Store.ForgetSession(ctx, id))
}

func (f *faults) ForgetSandbox(ctx context.Context, session, sandbox, run string) (bool, error) {
	if err := f.begin("forget sandbox"); err != nil {
		return false, err
	}
	ok, err := f.Store.ForgetSandbox(ctx, session, sandbox, run)
	return ok, f.end("forget sandbox", err)
}
