// Package eventlog lets any number of readers follow the events of runs by
// position.
//
// It owns the wake-ups of followers and, for each run that has any, a bounded
// tail of its newest events in memory, so that those who follow a live run don't
// read the database. It promises that a follower gets every stored event once
// and in order, however slow it is and however many write: data never travels in
// a wake-up. It hands out committed events only. What is gone, or was never
// there, is told by a truncated event, not by silence.
//
// It keeps nothing that a restart would miss, knows nothing of HTTP, tenants or
// heartbeats, and shows events with their whole data, however large.
package eventlog

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync"

	"github.com/tomblancdev/stromboli"
)

const (
	tailEvents = 256     // events in one run's tail
	tailBytes  = 1 << 20 // and bytes of their data
	readEvents = 256     // events per read of the store
	copyEvents = 64      // events taken from the tail at once
)

// Store is what the log stands on.
type Store interface {
	// AppendEvents stores events durably and returns those that are new.
	AppendEvents(ctx context.Context, runID string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error)
	// Events returns the events after a position, in order, at most limit; none
	// only where there are no more.
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
	// EventData returns one event's data.
	EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error)
	// LastEvent returns the newest event's sequence and whether the run has
	// ended; NotFound where there is no such run.
	LastEvent(ctx context.Context, runID string) (seq int64, ended bool, err error)
	// OnCommit names the function that is told of all events of all runs after
	// their commit, per run in order.
	OnCommit(fn func(runID string, events []stromboli.Event))
}

// Log follows the events of runs. Make one per store with New.
type Log struct {
	store Store

	mu    sync.Mutex
	runs  map[string]*followed // those with at least one follower
	ended func(runID string)   // nil: nobody asks
}

// followed is a run that somebody follows. Log.mu guards all of it.
type followed struct {
	wakes map[chan struct{}]struct{} // one slot each
	last  int64                      // newest sequence known to be committed
	asked int64                      // calls of Wake
	tail  tail
}

// New returns the log of a store and has itself told of its commits. It starts
// nothing and needs no end.
func New(store Store) *Log {
	l := &Log{store: store, runs: map[string]*followed{}}
	store.OnCommit(l.committed)
	return l
}

// Append stores events, durable on return, and wakes the run's followers; see
// the store's AppendEvents.
func (l *Log) Append(ctx context.Context, runID string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error) {
	return l.store.AppendEvents(ctx, runID, epoch, events)
}

// Events returns stored events after a position without waiting; see the store's
// Events.
func (l *Log) Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error) {
	return l.store.Events(ctx, runID, after, limit)
}

// EventData returns one event's data, however large; NotFound without it.
func (l *Log) EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error) {
	return l.store.EventData(ctx, runID, seq)
}

// Wake makes the followers of a run look into the store again. Events that were
// stored through this process's store don't need it.
func (l *Log) Wake(runID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.runs[runID]; f != nil {
		f.asked++
		f.wake()
	}
}

// OnEnd names the function that is told of each run whose end was stored through
// this process's store. It must return at once.
func (l *Log) OnEnd(fn func(runID string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = fn
}

// committed is called by the store.
func (l *Log) committed(runID string, events []stromboli.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(events); n > 0 && l.ended != nil && events[n-1].Type == stromboli.EventRunFinished {
		l.ended(runID)
	}
	f := l.runs[runID]
	if f == nil || len(events) == 0 {
		return
	}
	f.tail.add(events)
	f.last = max(f.last, events[len(events)-1].Seq)
	f.wake()
}

func (f *followed) wake() {
	for w := range f.wakes {
		select {
		case w <- struct{}{}:
		default: // it will look anyway
		}
	}
}

// register makes the caller a follower; it must call leave.
func (l *Log) register(runID string) (f *followed, wake chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f = l.runs[runID]; f == nil {
		f = &followed{wakes: map[chan struct{}]struct{}{}}
		l.runs[runID] = f
	}
	wake = make(chan struct{}, 1)
	f.wakes[wake] = struct{}{}
	return f, wake
}

func (l *Log) leave(runID string, f *followed, wake chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(f.wakes, wake)
	if len(f.wakes) == 0 {
		delete(l.runs, runID)
	}
}

// Follow yields the run's events after a position and goes on with those that
// are still to come. It ends without an error after run.finished; with one, as
// its last pair, when ctx is done (its error), when the run doesn't exist
// (NotFound) or when the store fails.
//
// Where positions are gone, or the caller's is beyond the newest event, it
// yields a truncated event that is not stored: its Seq is the position after
// which the stream goes on.
func (l *Log) Follow(ctx context.Context, runID string, after int64) iter.Seq2[stromboli.Event, error] {
	return func(yield func(stromboli.Event, error) bool) {
		f, wake := l.register(runID) // before the first read
		defer l.leave(runID, f, wake)
		fw := follower{log: l, run: f, runID: runID, wake: wake, pos: max(after, 0)}
		if err := fw.loop(ctx, yield); err != nil {
			yield(stromboli.Event{}, fmt.Errorf("follow run %s: %w", runID, err))
		}
	}
}
