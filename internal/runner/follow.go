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
		e.moves()
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

// broken says what an error means once the agent may have been started: the
// server stops, the sandbox is gone, its shim can't do what must be done, or
// something failed that may do so no more the next time.
func (e *execution) broken(ctx context.Context, err error) (stromboli.Outcome, error) {
	switch remote, ok := errors.AsType[*shim.RemoteError](err); {
	case ctx.Err() != nil:
		return stromboli.Outcome{}, errLetGo
	case errors.Is(err, shim.ErrGone):
		return e.lost(), nil
	case ok && remote.Code == shim.CodeStart:
		return e.failed(stromboli.ReasonImage, err), nil
	case ok && remote.Code == shim.CodeSecret:
		return e.failed(stromboli.ReasonNotConfigured, err), nil
	case ok, e.age() > e.plan.SandboxTimeout+giveUp:
		return e.failed(stromboli.ReasonEngine, err), nil
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
		e.background = time.AfterFunc(e.backgroundWait(), e.endBackground)
		e.waitedFor = e.turn.BackgroundTasks()
	}
	return nil
}

// backgroundWait is how long the run waits for tasks in the background.
func (e *execution) backgroundWait() time.Duration {
	if own := e.row.Spec.BackgroundWait; own != nil {
		return time.Duration(*own)
	}
	return e.r.cfg.BackgroundWait
}

// store turns lines into events and stores them, all of a line's events in one
// transaction.
func (e *execution) store(ctx context.Context, lines []shim.Line) error {
	var events []stromboli.Event
	for _, line := range lines {
		if line.Stream == shim.StdinRecord {
			continue
		}
		e.box.Begun()
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
