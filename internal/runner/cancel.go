package runner

import (
	"context"
	"errors"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// attach takes a sandbox, makes it known to cancel, has it guarded, and carries
// out a wish that is older than it.
func (e *execution) attach(box *sandbox.Sandbox) {
	e.box = box
	e.moves()
	e.until.Store(int64(e.age() + e.timeLeft()))
	records := newRecordReader(e)
	e.mu.Lock()
	e.abort = nil
	e.running = box
	e.calls, e.endCalls = context.WithCancel(context.Background())
	calls, wish := e.calls, e.wish
	e.stopping.Go(func() { records.follow(calls) })
	e.stopping.Go(func() { e.guard(calls, box) })
	e.stopping.Go(func() { e.endOverDisk(calls, box) })
	e.mu.Unlock()
	if wish != "" {
		e.interrupt()
	}
}

// detach ends the calls to the sandbox that others began, and the guard. Whoever
// is changing what the sandbox reaches has done so by then: what is told to
// egress later would outlive the sandbox.
func (e *execution) detach() {
	e.networks.Lock()
	e.mu.Lock()
	e.running = nil
	if e.endCalls != nil {
		e.endCalls()
	}
	e.mu.Unlock()
	e.networks.Unlock()
	e.stopping.Wait()
}

// age is how long the run has been executed.
func (e *execution) age() time.Duration { return time.Since(e.began) }

// moves notes that the run goes on.
func (e *execution) moves() { e.moved.Store(int64(e.age())) }

// allow gives the agent that much time from now on.
func (e *execution) allow(left time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wish == "" {
		e.until.Store(int64(e.age() + left))
	}
}

// guard is the last resort against a sandbox that outlives its deadline or a
// cancel: it is removed once nothing has come from it for a while.
func (e *execution) guard(ctx context.Context, box *sandbox.Sandbox) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.hurry:
			e.until.Store(min(e.until.Load(), int64(e.age()+killAfter)))
			timer.Reset(0)
			continue
		case <-timer.C:
		}
		due := time.Duration(max(e.until.Load(), e.moved.Load())) + backstop
		if left := due - e.age(); left > 0 {
			timer.Reset(left)
			continue
		}
		box.MarkOverdue()
		e.closeConnections(ctx)
		discard, cancel := context.WithTimeout(ctx, discardTime)
		err := e.r.cfg.Sandboxes.Discard(discard, box.ID)
		cancel()
		if err == nil || ctx.Err() != nil {
			return
		}
		e.log.ErrorContext(ctx, "removing a sandbox that outlived its time", "error", err)
		timer.Reset(backstop)
	}
}

// requestCancel records the wish to end the run and carries it out. The run
// can't end with another outcome in between.
func (e *execution) requestCancel(ctx context.Context, req stromboli.CancelRequest) (stromboli.Run, error) {
	e.ending.Lock()
	defer e.ending.Unlock()
	run, err := e.r.cfg.Store.RequestCancel(ctx, req)
	if err != nil {
		return stromboli.Run{}, err
	}
	e.r.cfg.Log.Wake(e.id)
	// Once the shim has the order it is carried out whatever becomes of this
	// server, so the caller's answer waits for that, if it doesn't take long.
	select {
	case <-e.cancel(run.CancelReason): //nolint:contextcheck // the order outlives its caller
	case <-time.After(orderWait):
	case <-ctx.Done():
	}
	return run, nil
}

// cancel carries out the wish to end the run; it doesn't wait for the end. The
// channel is closed when the sandbox has been told, where there is one.
func (e *execution) cancel(reason stromboli.Reason) (told <-chan struct{}) {
	e.mu.Lock()
	again := e.wish != ""
	if !again {
		e.wish = reason
	}
	if e.abort != nil {
		e.abort(errors.New("cancelled"))
	}
	e.mu.Unlock()
	if again {
		return closed()
	}
	return e.interrupt()
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (e *execution) wished() stromboli.Reason {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wish
}

// interrupt asks the CLI to end its turn and has the shim end the agent if it
// doesn't. The shim carries that out by its own clock, whatever becomes of
// this server, once it has the order: the channel is closed then.
func (e *execution) interrupt() (told <-chan struct{}) {
	select {
	case e.hurry <- struct{}{}:
	default:
	}
	req := shim.StopRequest{TermAfter: termAfter, KillAfter: killAfter, Cause: string(e.wished())}
	ordered := make(chan struct{})
	if !e.tell(func(ctx context.Context, p *shim.Peer) error {
		err := p.Stop(ctx, req)
		close(ordered)
		if err != nil {
			return err
		}
		// A courtesy: the order stands, whether the agent listens or not.
		_ = p.Stdin(ctx, interruptFrame, claude.Interrupt("stromboli-cancel"))
		return nil
	}) {
		close(ordered) // there is nobody to be told
	}
	return ordered
}

// endBackground ends a run whose agent has answered but left tasks running.
func (e *execution) endBackground() {
	e.tell(func(ctx context.Context, p *shim.Peer) error {
		return p.Stop(ctx, shim.StopRequest{KillAfter: termAfter, Cause: causeBackground})
	})
}

// endOverDisk ends a run whose sandbox takes more of the disk than its limit.
func (e *execution) endOverDisk(ctx context.Context, box *sandbox.Sandbox) {
	select {
	case <-ctx.Done():
		return
	case <-box.DiskOver():
	}
	e.log.WarnContext(ctx, "ending a run for its use of the disk", "sandbox", box.ID, "why", box.DiskWhy())
	select { // the guard sees to it, should the shim be frozen
	case e.hurry <- struct{}{}:
	default:
	}
	e.tell(func(ctx context.Context, p *shim.Peer) error { //nolint:contextcheck // as long as the run goes on
		return p.Stop(ctx, shim.StopRequest{KillAfter: termAfter, Cause: claude.CauseDisk})
	})
}

// overDisk is the sentence about a sandbox that takes too much of the disk,
// empty where it is not known to.
func (e *execution) overDisk() string {
	if e.box == nil {
		return ""
	}
	select {
	case <-e.box.DiskOver():
		return e.box.DiskWhy()
	default:
		return ""
	}
}

// tell makes a call to the sandbox, if there is one, without waiting for it,
// and reports whether there is one. While the shim is not connected the call waits too, as long as the run does.
func (e *execution) tell(call func(context.Context, *shim.Peer) error) bool {
	e.mu.Lock()
	box, ctx := e.running, e.calls
	if box != nil {
		e.stopping.Add(1)
	}
	e.mu.Unlock()
	if box == nil {
		return false
	}
	go func() {
		defer e.stopping.Done()
		if err := call(ctx, box.Peer); err != nil && ctx.Err() == nil && !errors.Is(err, shim.ErrGone) {
			e.log.Warn("telling the sandbox to stop", "error", err)
		}
	}()
	return true
}
