package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// follow stores what the agent prints until it has exited. A line is
// acknowledged to the shim, which may then forget it, only once its events are
// durable.
func (e *execution) follow(ctx context.Context) (stromboli.Outcome, error) {
	for after := e.row.LastLine; ; {
		if err := e.endTurn(ctx); err != nil {
			return e.broken(ctx, err)
		}
		lines, err := e.box.Peer.Next(ctx, after, batchLines)
		if err != nil {
			return e.broken(ctx, fmt.Errorf("reading the agent's output: %w", err))
		}
		if err := e.store(ctx, lines); err != nil {
			return e.broken(ctx, err)
		}
		if e.exit != nil {
			// The exit's line is never acknowledged: until the outcome is
			// durable the next server must be able to read it again.
			return e.ended(), nil
		}
		after = lines[len(lines)-1].Seq
		e.box.Peer.Ack(after)
	}
}

// broken says what an error in mid-run means: the server stops, the sandbox is
// gone, or something that a person must look at.
func (e *execution) broken(ctx context.Context, err error) (stromboli.Outcome, error) {
	switch {
	case ctx.Err() != nil:
		return stromboli.Outcome{}, errLetGo
	case errors.Is(err, shim.ErrGone):
		return e.lost(), nil
	}
	return stromboli.Outcome{}, err
}

// endTurn closes the agent's input once it has answered and nothing of its is
// left to wait for. For tasks in the background it waits a while first.
func (e *execution) endTurn(ctx context.Context) error {
	switch {
	case e.turn.Over() && !e.closed:
		if e.background != nil {
			e.background.Stop()
		}
		if err := e.box.Peer.CloseStdin(ctx); err != nil {
			return fmt.Errorf("closing the agent's input: %w", err)
		}
		e.closed = true
	case e.background == nil && e.turn.Answered() && !e.turn.Over():
		e.background = time.AfterFunc(e.r.cfg.BackgroundWait, e.endBackground)
		e.waitedFor = e.turn.BackgroundTasks()
	}
	return nil
}

// store turns lines into events and stores them, all of a line's events in one
// transaction.
func (e *execution) store(ctx context.Context, lines []shim.Line) error {
	var events []stromboli.Event
	for _, line := range lines {
		if line.Stream == shim.StdinRecord {
			continue
		}
		if line.Stream == shim.Exit {
			status, err := shim.ParseExit(line.Data)
			if err != nil {
				return fmt.Errorf("reading the agent's exit: %w", err)
			}
			e.exit = &status
			continue
		}
		data := e.feed(line)
		for i := range data {
			data[i].RunID, data[i].Line, data[i].At = e.id, line.Seq, line.At
		}
		events = append(events, data...)
	}
	if len(events) == 0 {
		return nil
	}
	err := e.persist(ctx, func() error {
		_, err := e.r.cfg.Log.Append(ctx, e.id, e.row.Epoch, events)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the run's events: %w", err)
	}
	return nil
}

func (e *execution) feed(line shim.Line) []stromboli.Event {
	stream := claude.Stdout
	if line.Stream == shim.Stderr {
		stream = claude.Stderr
	}
	events := e.turn.Feed(stream, line.Data)
	if line.Dropped > 0 {
		cut := event(stromboli.EventCut, stromboli.CutLineData{Line: line.Seq, Kept: int64(len(line.Data)), Dropped: line.Dropped})
		cut.Index = len(events)
		events = append(events, cut)
	}
	return events
}

// causeBackground is the exit's cause when background tasks were ended.
const causeBackground = "background"

// attach makes the sandbox known to cancel, and carries out a wish that is
// older than the sandbox.
func (e *execution) attach() {
	e.mu.Lock()
	e.abort = nil
	e.running = e.box
	wish := e.wish
	e.mu.Unlock()
	if wish != "" {
		e.interrupt()
	}
}

// detach waits for calls to the sandbox that others began.
func (e *execution) detach() {
	e.mu.Lock()
	e.running = nil
	e.mu.Unlock()
	e.stopping.Wait()
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
	e.cancel(run.CancelReason)
	return run, nil
}

// cancel carries out the wish to end the run; it doesn't wait for the end.
func (e *execution) cancel(reason stromboli.Reason) {
	e.mu.Lock()
	again := e.wish != ""
	if !again {
		e.wish = reason
	}
	if e.abort != nil {
		e.abort(errors.New("cancelled"))
	}
	e.mu.Unlock()
	if !again {
		e.interrupt()
	}
}

func (e *execution) wished() stromboli.Reason {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.wish
}

// interrupt asks the CLI to end its turn and has the shim end the agent if it
// doesn't. The shim carries that out by its own clock, whatever becomes of
// this server.
func (e *execution) interrupt() {
	req := shim.StopRequest{TermAfter: termAfter, KillAfter: killAfter, Cause: string(e.wished())}
	e.tell(func(ctx context.Context, p *shim.Peer) error {
		return errors.Join(p.Stop(ctx, req), p.Stdin(ctx, interruptFrame, claude.Interrupt("stromboli-cancel")))
	})
}

// endBackground ends a run whose agent has answered but left tasks running.
func (e *execution) endBackground() {
	e.tell(func(ctx context.Context, p *shim.Peer) error {
		return p.Stop(ctx, shim.StopRequest{KillAfter: termAfter, Cause: causeBackground})
	})
}

// tell makes a call to the sandbox, if there is one, without waiting for it.
func (e *execution) tell(call func(context.Context, *shim.Peer) error) {
	e.mu.Lock()
	box := e.running
	if box != nil {
		e.stopping.Add(1)
	}
	e.mu.Unlock()
	if box == nil {
		return
	}
	go func() {
		defer e.stopping.Done()
		ctx, cancel := context.WithTimeout(context.Background(), killAfter)
		defer cancel()
		if err := call(ctx, box.Peer); err != nil && !errors.Is(err, shim.ErrGone) {
			e.log.Warn("telling the sandbox to stop", "error", err)
		}
	}()
}
