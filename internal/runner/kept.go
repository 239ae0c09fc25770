package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// A session with create hooks keeps its sandbox, stopped, after a run. The
// session's row names it from the transaction that ends the run until the one
// that forgets it; a row is written before a container is touched. So whoever
// dies, a sandbox is either named by a row, and stopped by the next server, or
// by none, and removed by it.

// Kept sandboxes are looked at when something changes, when the next one's time
// is over, and for the sake of the disk every so often.
const (
	tidyEvery = 15 * time.Second
	tidySoon  = 100 * time.Millisecond
)

// resume goes on in the sandbox that the session keeps; it is nil where there is
// none, or none that can be used.
func (e *execution) resume(ctx context.Context, session stromboli.Session, spec sandbox.Spec) (*sandbox.Sandbox, error) {
	if session.Kept.ID == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	if err := e.name(ctx, session.Kept.ID); err != nil {
		return nil, err
	}
	spec.ID = session.Kept.ID
	box, err := e.r.cfg.Sandboxes.Resume(ctx, spec)
	unusable, ok := errors.AsType[*sandbox.UnusableError](err)
	if !ok {
		if err != nil {
			err = fmt.Errorf("starting the session's sandbox again: %w", err)
		}
		return box, err
	}
	e.log.InfoContext(ctx, "the session's kept sandbox can't be used", "sandbox", spec.ID, "error", unusable)
	err = e.persist(ctx, func() error {
		_, err := e.r.cfg.Store.ForgetSandbox(ctx, session.ID, spec.ID, e.id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("forgetting the session's sandbox: %w", err)
	}
	e.remade = unusable.Why
	e.r.discardKept(ctx, spec.ID)
	return nil, nil //nolint:nilnil // there is none any more
}

// name records the name of the run's sandbox: it is durable before anything of
// that name is made or changed.
func (e *execution) name(ctx context.Context, id string) error {
	e.row.SandboxID = id
	return e.update(ctx, stromboli.RunUpdate{SandboxID: &id})
}

// keep decides what becomes of the run's sandbox, and has the run's end record it.
func (e *execution) keep(ctx context.Context, f *stromboli.RunFinish) error {
	e.keeping = false
	session, err := e.session(ctx)
	if errors.Is(err, stromboli.SessionUnusable) || e.row.SandboxID == "" {
		return nil
	}
	if err != nil {
		return err
	}
	had := session.Kept.ID == e.row.SandboxID
	switch {
	case e.keepable(session, f.Outcome):
		now := e.r.now()
		e.keeping = true
		f.Session.Kept = &stromboli.KeptSandbox{ID: e.row.SandboxID, Since: now, Until: now.Add(e.r.cfg.Keep)}
	case had && e.box == nil && !e.row.AgentStarted && !e.hooking(): // the run never came to be in it
		e.keeping = true
	case had:
		f.Session.Kept = &stromboli.KeptSandbox{}
	}
	return nil
}

// keepable reports whether the next run could go on in this one's sandbox.
func (e *execution) keepable(session stromboli.Session, out stromboli.Outcome) bool {
	switch {
	case e.r.cfg.Keep <= 0, !session.Hooks.Creates(), session.Ephemeral, session.ForkPending:
		return false
	case e.box == nil, e.box.Overdue(), out.Reason == stromboli.ReasonLost, out.Reason == stromboli.ReasonDisk:
		return false
	case e.row.AgentStarted && e.exit == nil: // its shim has not told the end
		return false
	}
	creates := len(session.Hooks.OnCreateCommand) + len(session.Hooks.PostCreate)
	return e.box.Resumed || e.hooked.done > creates || e.hooked.done == creates && !e.hooked.failed()
}

// tidy discards kept sandboxes whose time is over or for which there is no room,
// until ctx ends.
func (r *Runner) tidy(ctx context.Context) {
	for {
		next, err := r.tidyOnce(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "looking for kept sandboxes", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.untidy:
		case <-time.After(next):
		}
	}
}

// tidyOnce says when it has to be called next.
func (r *Runner) tidyOnce(ctx context.Context) (next time.Duration, err error) {
	next = tidyEvery
	list, err := r.cfg.Store.KeptSandboxes(ctx)
	if err != nil {
		return next, err
	}
	waiting := 0
	for _, s := range list {
		if r.execution(s.ActiveRun) == nil {
			waiting++
		}
	}
	for _, s := range list { // the longest kept first
		left := s.Kept.Until.Sub(r.now())
		if s.Kept.Since.Sub(r.now()) > time.Minute { // the clock was set back: nobody knows how old it is
			left = 0
		}
		if r.cfg.Keep > 0 && left > 0 && waiting <= r.cfg.KeepMax && r.cfg.Sandboxes.Room() == nil {
			next = min(next, max(left, tidySoon))
			continue
		}
		discarded, err := r.drop(ctx, s)
		if err != nil {
			return next, err
		}
		if discarded {
			waiting--
		}
	}
	return next, nil
}

// drop discards a session's kept sandbox, unless a run has the session.
func (r *Runner) drop(ctx context.Context, s stromboli.Session) (bool, error) {
	if s.ActiveRun != "" || s.Deleting {
		return false, nil
	}
	ours, err := r.cfg.Store.ForgetSandbox(ctx, s.ID, s.Kept.ID, "")
	if err != nil || !ours {
		return false, err
	}
	r.log.InfoContext(ctx, "discarding a kept sandbox", "session", s.ID, "sandbox", s.Kept.ID)
	r.discardKept(ctx, s.Kept.ID)
	return true, nil
}

// discardKept discards a sandbox that no row names any more. What fails is tried
// again beside, and then by the next server.
func (r *Runner) discardKept(ctx context.Context, id string) {
	err := r.discardOnce(ctx, id)
	if err == nil {
		return
	}
	r.log.ErrorContext(ctx, "discarding a kept sandbox", "sandbox", id, "error", err)
	r.executions.Go(func() {
		for delay := retryLast; err != nil; delay = min(2*delay, giveUp) {
			select {
			case <-r.base.Done():
				return
			case <-time.After(delay):
				err = r.discardOnce(r.base, id)
			}
		}
	})
}

func (r *Runner) discardOnce(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTime)
	defer cancel()
	return r.cfg.Sandboxes.Discard(ctx, id)
}

// roomTime is after how long no further sandbox is discarded while somebody who
// asks for a run waits.
const roomTime = 10 * time.Second

// room makes sure that there is room for a new run. Kept sandboxes go first, the
// longest kept before others.
func (r *Runner) room(ctx context.Context) error {
	err := r.cfg.Sandboxes.Room()
	if err == nil {
		return nil
	}
	_, terr, _ := r.making.Do("room", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roomTime)
		defer cancel()
		return r.tidyOnce(ctx)
	})
	if terr != nil {
		return err
	}
	return r.cfg.Sandboxes.Room()
}

// changed has kept sandboxes looked at soon.
func (r *Runner) changed() {
	select {
	case r.untidy <- struct{}{}:
	default:
	}
}
