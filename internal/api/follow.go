package api

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// errStopping ends a stream because the server stops.
var errStopping = errors.New("the server is stopping")

type followed struct {
	ev  stromboli.Event
	err error
}

// pump gives a run's events after a position to send, one by one, with signs
// of life between them. It ends when send says that it was the last one (nil),
// when send fails, when the client is gone, when the server stops
// (errStopping), or when the log fails.
func (a *API) pump(ctx context.Context, out *sse, runID string, after int64, send func(stromboli.Event) (last bool, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan followed)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(events)
		a.forward(ctx, runID, after, events)
	})
	beat := time.NewTicker(a.cfg.Heartbeat)
	defer beat.Stop()
	for {
		select {
		case f, ok := <-events:
			if !ok {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return errEventsEnded
			}
			if f.err != nil {
				return f.err
			}
			if last, err := send(f.ev); last || err != nil {
				return err
			}
			beat.Reset(a.cfg.Heartbeat)
		case <-beat.C:
			if err := out.beat(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-a.stopping:
			if err := out.retry(a.cfg.Retry); err != nil {
				return err
			}
			return errStopping
		}
	}
}

// forward moves events from the log's iterator, which blocks, to a channel,
// which can be waited for beside other things.
func (a *API) forward(ctx context.Context, runID string, after int64, to chan<- followed) {
	offer := func(f followed) bool {
		select {
		case to <- f:
			return f.err == nil
		case <-ctx.Done():
			return false
		}
	}
	defer func() {
		if v := recover(); v != nil {
			a.log.ErrorContext(ctx, "panic in an event log", "run_id", runID, "panic", v, "stack", string(debug.Stack()))
			offer(followed{err: fmt.Errorf("follow %s: panic", runID)})
		}
	}()
	for ev, err := range a.cfg.Events.Follow(ctx, runID, after) {
		if err != nil {
			err = fmt.Errorf("follow %s: %w", runID, err)
		}
		if !offer(followed{ev, err}) {
			return
		}
	}
}

// ended logs how a stream ended, unless that is the ordinary way, and reports
// whether the client is the one that left.
func (a *API) ended(ctx context.Context, runID string, err error) (clientLeft bool) {
	switch {
	case err == nil, errors.Is(err, errStopping):
		return false
	case ctx.Err() != nil, isWriteError(err):
		return !a.draining()
	default:
		// Without done or error the client comes back and tries again.
		a.log.ErrorContext(ctx, "a stream broke", "run_id", runID, "err", err)
		return false
	}
}
