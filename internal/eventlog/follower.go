package eventlog

import (
	"context"
	"encoding/json"
	"time"

	"github.com/tomblancdev/stromboli"
)

// follower is one call of Follow; its goroutine's own.
type follower struct {
	log   *Log
	run   *followed
	runID string
	wake  chan struct{}

	pos   int64 // the last sequence that was yielded or skipped
	ended bool  // the run had ended at the last look
	asked int64 // the calls of Wake before the last look
}

// loop returns nil when the stream is over or the reader has enough.
func (fw *follower) loop(ctx context.Context, yield func(stromboli.Event, error) bool) error {
	last, err := fw.look(ctx)
	if err != nil {
		return err
	}
	if fw.pos > last {
		from, to := last+1, fw.pos
		fw.pos = last
		if !yield(fw.truncated(from, to), nil) {
			return nil
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		last, stale, events := fw.known()
		switch {
		case stale:
			if _, err := fw.look(ctx); err != nil {
				return err
			}
			continue
		case fw.pos >= last && fw.ended:
			return nil
		case fw.pos >= last:
			select {
			case <-fw.wake:
			case <-ctx.Done():
			}
			continue
		case len(events) == 0:
			if events, err = fw.log.store.Events(ctx, fw.runID, fw.pos, readEvents); err != nil {
				return err
			}
		}
		var more bool
		if len(events) == 0 {
			more, err = fw.gone(ctx, last, yield)
		} else {
			more = fw.deliver(events, yield)
		}
		if err != nil || !more {
			return err
		}
	}
}

// deliver yields events, and what is missing before them, and reports whether
// the reader wants more and there can be more.
func (fw *follower) deliver(events []stromboli.Event, yield func(stromboli.Event, error) bool) bool {
	for _, ev := range events {
		if ev.Seq > fw.pos+1 {
			from := fw.pos + 1
			fw.pos = ev.Seq - 1
			if !yield(fw.truncated(from, fw.pos), nil) {
				return false
			}
		}
		fw.pos = ev.Seq
		if !yield(ev, nil) || ev.Type == stromboli.EventRunFinished {
			return false
		}
	}
	return true
}

// gone skips events that were committed and are not there any more: they were
// deleted under the reader's eyes, and maybe the run with them.
func (fw *follower) gone(ctx context.Context, last int64, yield func(stromboli.Event, error) bool) (more bool, err error) {
	if _, err := fw.look(ctx); err != nil {
		return false, err
	}
	from := fw.pos + 1
	fw.pos = last
	return yield(fw.truncated(from, last), nil), nil
}

// known is what this process knows without the store: the newest sequence, what
// the tail has after the position, and whether somebody said that there may be
// more.
func (fw *follower) known() (last int64, stale bool, events []stromboli.Event) {
	fw.log.mu.Lock()
	defer fw.log.mu.Unlock()
	if fw.pos < fw.run.last {
		events = fw.run.tail.after(fw.pos)
	}
	return fw.run.last, fw.run.asked != fw.asked, events
}

// look reads the run's position from the store.
func (fw *follower) look(ctx context.Context) (last int64, err error) {
	fw.log.mu.Lock()
	asked := fw.run.asked // before the read
	fw.log.mu.Unlock()
	last, ended, err := fw.log.store.LastEvent(ctx, fw.runID)
	if err != nil {
		return 0, err
	}
	fw.asked, fw.ended = asked, ended
	fw.log.mu.Lock()
	defer fw.log.mu.Unlock()
	fw.run.last = max(fw.run.last, last)
	return last, nil
}

// truncated tells of positions that the reader will never get.
func (fw *follower) truncated(from, to int64) stromboli.Event {
	data, err := json.Marshal(stromboli.TruncatedData{From: from, To: to})
	if err != nil { // two integers always marshal
		data = nil
	}
	return stromboli.Event{
		Seq: fw.pos, RunID: fw.runID, Type: stromboli.EventTruncated, At: time.Now().UTC(), Data: data,
	}
}
