package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// presence counts the callers that watch each run which asked to end with its
// caller (on_disconnect: cancel). It lives in memory only, on purpose: a stop
// or crash of the server must not end runs.
type presence struct {
	mu     sync.Mutex
	runs   map[string]*watch
	closed bool
	calls  sync.WaitGroup // cancellations under way
}

type watch struct {
	callers int
	timer   *time.Timer // armed while nobody is there
}

// visit is one caller's stay; a nil visit counts nothing.
type visit struct {
	at     *presence
	runID  string
	cancel func()
}

// arrive notes that the request's caller watches the run. The visit's leave
// must be called at the end.
func (a *API) arrive(r *http.Request, p stromboli.Principal, run stromboli.Run) *visit {
	if run.Spec.OnDisconnect != stromboli.OnDisconnectCancel || run.Status.Terminal() {
		return nil
	}
	detached := context.WithoutCancel(r.Context())
	v := &visit{at: &a.presence, runID: run.ID, cancel: func() {
		ctx, stop := context.WithTimeout(detached, submitTimeout)
		defer stop()
		_, err := a.cfg.Runs.Cancel(ctx, p, run.ID, stromboli.ReasonDisconnect)
		if err != nil && stromboli.CodeOf(err) != stromboli.Conflict {
			a.log.ErrorContext(ctx, "cancel a run whose caller went away", "run_id", run.ID, "err", err)
		}
	}}
	v.at.mu.Lock()
	defer v.at.mu.Unlock()
	w := v.at.runs[run.ID]
	if w == nil {
		w = &watch{}
		v.at.runs[run.ID] = w
	}
	w.callers++
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
	return v
}

// leave ends the visit. If the last caller is gone (closed its connection, as
// opposed to having got everything), the run is cancelled after the grace
// unless somebody comes back; without a grace leave returns when the wish to
// cancel is recorded.
func (v *visit) leave(gone bool, grace time.Duration) {
	if v == nil {
		return
	}
	v.at.mu.Lock()
	w := v.at.runs[v.runID]
	w.callers--
	if w.callers > 0 {
		v.at.mu.Unlock()
		return
	}
	if !gone || v.at.closed {
		delete(v.at.runs, v.runID)
		v.at.mu.Unlock()
		return
	}
	if grace == 0 {
		delete(v.at.runs, v.runID)
		v.at.mu.Unlock()
		v.cancel()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(grace, func() {
		v.at.mu.Lock()
		if v.at.closed || w.timer != timer {
			v.at.mu.Unlock()
			return
		}
		delete(v.at.runs, v.runID)
		v.at.calls.Add(1)
		v.at.mu.Unlock()
		defer v.at.calls.Done()
		v.cancel()
	})
	w.timer = timer
	v.at.mu.Unlock()
}

// close forgets everybody and waits for cancellations under way.
func (p *presence) close() {
	p.mu.Lock()
	p.closed = true
	for _, w := range p.runs {
		if w.timer != nil {
			w.timer.Stop()
		}
	}
	p.mu.Unlock()
	p.calls.Wait()
}
