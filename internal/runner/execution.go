package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

const (
	// messageFrame is the number of the stdin frame that carries the prompt,
	// interruptFrame of the one that carries an interrupt. The shim writes a
	// frame once, however often it is sent.
	messageFrame   = 1
	interruptFrame = 2

	termAfter = 2 * time.Second // from the interrupt to SIGTERM
	killAfter = 4 * time.Second // from the interrupt to SIGKILL

	// backstop is how long after its deadline a run may still be there before
	// its sandbox is removed without asking: the shim ends the agent itself,
	// but a frozen one can't.
	backstop = 15 * time.Second

	batchLines = 512
	storeRetry = 500 * time.Millisecond
)

// execution carries one run from "running" to its end. It belongs to one
// goroutine, run; only cancel may be called by others.
type execution struct {
	r   *Runner
	id  string
	log *slog.Logger

	row  stromboli.Run // as this server last wrote it
	plan policy.Plan

	accepted time.Time // when the request came in; zero unless it is executed at once

	turn *claude.Turn
	box  *sandbox.Sandbox
	exit *shim.ExitStatus

	closed     bool        // the agent's input
	background *time.Timer // ends tasks in the background
	waitedFor  []stromboli.BackgroundTask
	overtime   *time.Timer // removes a sandbox that outlives its deadline

	// ending is held while a cancel is recorded and while the end is: a cancel
	// that was answered beats the result.
	ending sync.Mutex

	mu       sync.Mutex
	wish     stromboli.Reason        // why the run is to be cancelled, empty while it isn't
	abort    context.CancelCauseFunc // ends the making of a sandbox
	running  *sandbox.Sandbox        // set while the agent may be told to stop
	stopping sync.WaitGroup          // the calls that tell it so
}

func newExecution(r *Runner, run stromboli.Run) *execution {
	return &execution{
		r: r, id: run.ID, row: run, wish: run.CancelReason,
		log: r.log.With("run", run.ID),
	}
}

// run executes until the run has ended or ctx has: then the sandbox stays for
// the next server.
func (e *execution) run(ctx context.Context) {
	outcome, err := e.execute(ctx)
	e.stopTimers()
	e.detach()
	if err != nil {
		if ctx.Err() == nil {
			e.log.ErrorContext(ctx, "executing a run", "error", err)
		}
		e.letGo()
		return
	}
	if err := e.finish(ctx, outcome); err != nil {
		if ctx.Err() == nil {
			e.log.ErrorContext(ctx, "finishing a run", "error", err)
		}
		e.letGo()
		return
	}
	e.discard(ctx)
}

// execute returns how the run ended, or an error when this server can't go on
// with it; nothing has been decided then.
func (e *execution) execute(ctx context.Context) (stromboli.Outcome, error) {
	plan, err := policy.Check(e.row.Spec, e.r.cfg.Policy)
	if err != nil { // the configuration changed while the run was queued
		return e.failed(stromboli.ReasonNotEnforced, err), nil
	}
	e.plan = plan
	e.turn = claude.NewTurn(e.row.Spec.Claude)
	if e.row.AgentStarted {
		err = e.reattach(ctx)
	} else {
		err = e.start(ctx)
	}
	if err != nil {
		return e.startFailure(ctx, err)
	}
	return e.follow(ctx)
}

// startFailure turns an error on the way to the agent's first line into an
// outcome.
func (e *execution) startFailure(ctx context.Context, err error) (stromboli.Outcome, error) {
	if ctx.Err() != nil {
		return stromboli.Outcome{}, errLetGo
	}
	if reason := e.wished(); reason != "" {
		return e.cancelled(reason), nil
	}
	if errors.Is(err, shim.ErrGone) && e.row.AgentStarted {
		return e.lost(), nil
	}
	switch stromboli.CodeOf(err) {
	case stromboli.NotEnforced:
		return e.failed(stromboli.ReasonNotEnforced, err), nil
	case stromboli.ImageMissing:
		return e.failed(stromboli.ReasonImage, err), nil
	case stromboli.StorageFull:
		return e.failed(stromboli.ReasonDisk, err), nil
	case stromboli.NotConfigured:
		return e.failed(stromboli.ReasonNotConfigured, err), nil
	}
	return e.failed(stromboli.ReasonEngine, err), nil
}

// start makes the sandbox and starts the agent with the run's message.
func (e *execution) start(ctx context.Context) error {
	create, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	e.mu.Lock()
	e.abort = abort
	wish := e.wish
	e.mu.Unlock()
	if wish != "" {
		return errors.New("cancelled before the sandbox was made")
	}
	kind, err := e.r.cfg.Model.Ready(ctx)
	if err != nil {
		return err
	}
	session, err := e.r.cfg.Store.GetSession(ctx, e.row.Tenant, e.row.SessionID)
	if err != nil {
		return fmt.Errorf("reading the session: %w", err)
	}
	// The sandbox's name is durable before anything of that name exists.
	e.row.SandboxID = stromboli.NewSandboxID()
	if err := e.update(create, stromboli.RunUpdate{SandboxID: &e.row.SandboxID}); err != nil {
		return err
	}
	created := time.Now()
	spec := sandbox.Spec{
		ID: e.row.SandboxID, RunID: e.id, SessionID: session.ID,
		SessionUID: session.UID, SessionGID: session.GID, Plan: e.plan,
	}
	if e.row.Spec.Claude.Resume {
		spec.BeforeStart = func(h sandbox.Home) error { return e.putTranscript(create, session, h) }
	}
	if e.box, err = e.r.cfg.Sandboxes.Create(create, spec); err != nil {
		return fmt.Errorf("making the sandbox: %w", err)
	}
	e.attach()
	if err := e.announce(create); err != nil {
		return err
	}
	return e.startAgent(create, kind, session, created)
}

// announce records, before the agent is asked for, that it may exist.
func (e *execution) announce(ctx context.Context) error {
	started, phase := true, stromboli.PhaseStarting
	var events []stromboli.Event
	for _, w := range e.box.Warnings {
		events = append(events, event(stromboli.EventWarning, stromboli.WarningData(w)))
	}
	events = append(events,
		event(stromboli.EventPhase, stromboli.PhaseData{Phase: phase}),
		event(stromboli.EventRunStarted, stromboli.StartedData{
			Sandbox: e.box.ID, Start: "cold", Image: e.box.Image, ImageDigest: e.box.ImageDigest, UID: e.box.UID, GID: e.box.GID,
		}))
	err := e.update(ctx, stromboli.RunUpdate{
		AgentStarted: &started, Phase: &phase, ImageDigest: &e.box.ImageDigest, Warnings: e.box.Warnings, Events: events,
	})
	if err == nil {
		e.row.AgentStarted = true
	}
	return err
}

func (e *execution) startAgent(ctx context.Context, kind string, session stromboli.Session, created time.Time) error {
	opts := e.row.Spec.Claude
	deadline := e.plan.SandboxTimeout - time.Since(created)
	if e.plan.ClaudeTimeout > 0 && e.plan.ClaudeTimeout < deadline {
		deadline = e.plan.ClaudeTimeout
	}
	process := shim.Process{
		ID:   e.id,
		Argv: append([]string{e.box.CLI}, claude.Args(opts, claude.Session{ID: session.CLISessionID, Resume: opts.Resume})...),
		Env: claude.Env(claude.EnvConfig{
			Image: e.box.ImageEnv, Home: e.box.Home, Endpoint: e.box.ProxyURL, CredentialKind: kind, MaxRetries: -1,
		}),
		Dir: e.box.Workdir, UID: e.box.UID, GID: e.box.GID, Deadline: max(deadline, time.Millisecond),
	}
	if err := e.box.Peer.Start(ctx, process); err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	if err := e.box.Peer.Stdin(ctx, messageFrame, claude.UserMessage(messageUUID(e.id), e.row.Spec.Prompt)); err != nil {
		return fmt.Errorf("sending the message: %w", err)
	}
	e.guard(deadline)
	phase := stromboli.PhaseGenerating
	data := stromboli.PhaseData{Phase: phase}
	if !e.accepted.IsZero() {
		data.Timing = &stromboli.StartTiming{TotalUS: time.Since(e.accepted).Microseconds(), EngineUS: e.box.EngineTime.Microseconds()}
	}
	return e.update(ctx, stromboli.RunUpdate{Phase: &phase, Events: []stromboli.Event{event(stromboli.EventPhase, data)}})
}

// reattach finds the sandbox that an earlier server made and rebuilds what
// that server knew from the events that it stored.
func (e *execution) reattach(ctx context.Context) error {
	box, err := e.r.cfg.Sandboxes.Adopt(ctx, e.row.SandboxID)
	if err != nil {
		return err
	}
	e.box = box
	if err := e.replay(ctx); err != nil {
		return err
	}
	e.attach()
	session, err := e.r.cfg.Store.GetSession(ctx, e.row.Tenant, e.row.SessionID)
	if err != nil {
		return fmt.Errorf("reading the session: %w", err)
	}
	kind, err := e.r.cfg.Model.Ready(ctx)
	if err != nil {
		kind = claude.APIKey // the agent runs already; its placeholder is given
	}
	if _, err := e.box.Peer.Ready(ctx); err != nil {
		return err
	}
	return e.startAgent(ctx, kind, session, box.CreatedAt)
}

// replay feeds the stored output to a fresh turn.
func (e *execution) replay(ctx context.Context) error {
	for after := int64(0); ; {
		events, err := e.r.cfg.Log.Events(ctx, e.id, after, 1000)
		if err != nil {
			return fmt.Errorf("reading the run's events: %w", err)
		}
		if len(events) == 0 {
			return nil
		}
		for _, ev := range events {
			after = ev.Seq
			e.turn.Replay(ev)
		}
	}
}

// guard arms the last resort against a sandbox that outlives its deadline.
func (e *execution) guard(deadline time.Duration) {
	box := e.box
	e.overtime = time.AfterFunc(max(deadline, 0)+backstop, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		box.MarkOverdue()
		if err := e.r.cfg.Sandboxes.Discard(ctx, box.ID); err != nil {
			e.log.Error("removing a sandbox that outlived its deadline", "error", err)
		}
	})
}

func (e *execution) stopTimers() {
	for _, t := range []*time.Timer{e.background, e.overtime} {
		if t != nil {
			t.Stop()
		}
	}
}

// update writes the row. It is tried again while the disk is full: the agent
// waits meanwhile, and nothing is lost.
func (e *execution) update(ctx context.Context, u stromboli.RunUpdate) error {
	err := e.persist(ctx, func() error {
		_, err := e.r.cfg.Store.UpdateRun(ctx, e.id, e.row.Epoch, u)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the run's progress: %w", err)
	}
	if len(u.Events) > 0 {
		e.r.cfg.Log.Wake(e.id)
	}
	return nil
}

// persist repeats a write that failed for want of space until it succeeds or
// ctx ends.
func (e *execution) persist(ctx context.Context, write func() error) error {
	for logged := false; ; logged = true {
		err := write()
		if err == nil || !errors.Is(err, stromboli.StorageFull) && !errors.Is(err, stromboli.StorageBusy) {
			return err
		}
		if !logged {
			e.log.ErrorContext(ctx, "can't store now; the run waits", "error", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(storeRetry):
		}
	}
}
