package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// submitTimeout bounds the making of a run. Its context is not the request's:
// a client that leaves in the middle must not cut a write in two.
const submitTimeout = 30 * time.Second

func (a *API) submit(r *http.Request, p stromboli.Principal, s stromboli.Submission) (stromboli.Run, error) {
	if a.draining() {
		return stromboli.Run{}, &stromboli.Error{
			Code: stromboli.Draining, Message: "the server is stopping and takes no new runs", RetryAfter: 5 * time.Second,
		}
	}
	ctx, cancel := detach(r)
	defer cancel()
	run, _, err := a.cfg.Runs.Submit(ctx, p, s)
	if err != nil {
		return run, err
	}
	return run, settle(r, run.ID) // the answer may be long in coming
}

func (a *API) runAsync(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	s, err := a.readSubmission(w, r, stromboli.KindAsync, "POST /run/async")
	if err != nil {
		return err
	}
	run, err := a.submit(r, p, s)
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusAccepted, asyncResponse{
		JobID: stromboli.JobID(run.ID), SessionID: run.SessionID, SessionAlias: run.SessionAlias,
	})
	return nil
}

func (a *API) run(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	s, err := a.readSubmission(w, r, stromboli.KindSync, "POST /run")
	if err != nil {
		return err
	}
	run, err := a.submit(r, p, s) //nolint:contextcheck // a caller that leaves must not cut it in two
	if err != nil {
		return err
	}
	here := a.arrive(r, p, run)
	run, err = a.await(r, p, run)
	here.leave(a.clientLeft(r), 0)
	if err != nil {
		return err
	}
	status, resp := toRun(run, requestID(r))
	if status == http.StatusServiceUnavailable {
		setRetryAfter(w.Header(), 0)
	}
	if status == http.StatusInternalServerError || status == http.StatusServiceUnavailable {
		a.log.WarnContext(r.Context(), "run failed", "run_id", run.ID, "reason", string(run.Outcome.Reason))
	}
	a.answer(w, r, status, resp)
	return nil
}

// await waits until the run has ended. When the server stops it gives up a
// little before connections are cut, with an answer that names the run.
func (a *API) await(r *http.Request, p stromboli.Principal, run stromboli.Run) (stromboli.Run, error) {
	if run.Status.Terminal() {
		return run, nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		select {
		case <-a.stopping:
		case <-ctx.Done():
			return
		}
		letGo := time.NewTimer(a.cfg.Drain * 9 / 10)
		defer letGo.Stop()
		select {
		case <-letGo.C:
			cancel()
		case <-ctx.Done():
		}
	})
	for ev, err := range a.cfg.Events.Follow(ctx, run.ID, run.LastSeq) {
		if err != nil && ctx.Err() == nil {
			return run, fmt.Errorf("follow %s: %w", run.ID, err)
		}
		if err != nil || ev.Type == stromboli.EventRunFinished {
			break
		}
	}
	if err := r.Context().Err(); err != nil {
		return run, fmt.Errorf("wait for %s: %w", run.ID, err)
	}
	got, err := a.cfg.Runs.Get(r.Context(), p, run.ID)
	if err != nil {
		return run, fmt.Errorf("get %s: %w", run.ID, err)
	}
	if got.Status.Terminal() {
		return got, nil
	}
	if a.draining() {
		return run, &waitError{runID: run.ID, err: &stromboli.Error{
			Code: stromboli.Draining, RetryAfter: 5 * time.Second,
			Message: "the server is stopping; the run goes on, ask for it at /jobs/" + stromboli.JobID(run.ID),
		}}
	}
	return run, fmt.Errorf("wait for %s: %w", run.ID, errEventsEnded)
}

var errEventsEnded = errors.New("the events ended before the run did")

// clientLeft reports whether the request ended because its client closed it,
// and not because the server is stopping.
func (a *API) clientLeft(r *http.Request) bool {
	return r.Context().Err() != nil && !a.draining()
}
