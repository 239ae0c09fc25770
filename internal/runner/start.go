package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

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
	kind, err := e.credential(create)
	if err != nil {
		return err
	}
	secrets, err := e.secrets(create)
	if err != nil {
		return err
	}
	if err := e.bind(create); err != nil {
		return err
	}
	session, err := e.session(ctx)
	if err != nil {
		return err
	}
	if e.checked == nil {
		if err := e.checkAgain(create); err != nil {
			return err
		}
	}
	spec := sandbox.Spec{
		RunID: e.id, SessionID: session.ID,
		SessionUID: session.UID, SessionGID: session.GID, Ephemeral: session.Ephemeral,
		Plan: e.plan, Checked: *e.checked, Reach: e.reach(),
		EngineSecrets: engineSecrets(e.row.Spec),
		WritableRoot:  session.Hooks.Creates(), RootHooks: session.Hooks.Creates() && e.r.cfg.RootHooks,
	}
	if session.ForkPending {
		if err := e.fork(create, &session, &spec); err != nil {
			return err
		}
	}
	if e.row.Spec.Claude.Resume {
		spec.BeforeStart = func(h sandbox.Home) error { return e.prepareHome(create, session, h) }
	}
	box, err := e.resume(create, session, spec)
	if err != nil {
		return err
	}
	if box == nil {
		spec.ID = stromboli.NewSandboxID()
		if err := e.name(create, spec.ID); err != nil {
			return err
		}
		if box, err = e.r.cfg.Sandboxes.Create(create, spec); err != nil {
			return fmt.Errorf("making the sandbox: %w", err)
		}
	}
	e.attach(box) //nolint:contextcheck // what is told to a sandbox ends with detach
	if err := e.keepReach(create, spec.Reach); err != nil {
		return err
	}
	if err := e.writeFiles(create); err != nil {
		return err
	}
	return e.firstAgent(create, agentStart{kind: kind, session: session, secrets: secrets})
}

// firstAgent does what is left to do in a sandbox before its agent, and starts
// that.
func (e *execution) firstAgent(ctx context.Context, s agentStart) error {
	if err := e.runHooks(ctx, s); err != nil {
		return err
	}
	if err := e.checkNeeds(ctx); err != nil {
		return err
	}
	if err := e.announce(ctx); err != nil {
		return err
	}
	return e.startAgent(ctx, s)
}

// credential returns the kind of the model's credential.
func (e *execution) credential(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, helpTime)
	defer cancel()
	return e.r.cfg.Model.Ready(ctx, e.row.Tenant)
}

// announce records, before the agent is asked for, that it may exist.
func (e *execution) announce(ctx context.Context) error {
	started, phase := true, stromboli.PhaseStarting
	var events []stromboli.Event
	for _, w := range e.box.Warnings {
		events = append(events, event(stromboli.EventWarning, stromboli.WarningData(w)))
	}
	how := "cold"
	if e.box.Resumed {
		how = "kept"
	}
	data := stromboli.StartedData{
		Sandbox: e.box.ID, Start: how, Image: e.box.Image, ImageDigest: e.box.ImageDigest, UID: e.box.UID, GID: e.box.GID,
	}
	if e.box.Attestation != nil {
		summary := e.box.Attestation.Summary()
		data.Attestation = &summary
	}
	events = append(events, event(stromboli.EventPhase, stromboli.PhaseData{Phase: phase}), event(stromboli.EventRunStarted, data))
	err := e.update(ctx, stromboli.RunUpdate{
		AgentStarted: &started, Phase: &phase, ImageDigest: &e.box.ImageDigest, Warnings: e.box.Warnings, Events: events,
		Attestation: e.box.Attestation,
	})
	if err == nil {
		e.row.AgentStarted = true
	}
	return err
}

// timeLeft is how long the agent may go on from now.
func (e *execution) timeLeft() time.Duration {
	left := e.plan.SandboxTimeout - e.box.Age()
	if e.plan.ClaudeTimeout > 0 {
		left = min(left, e.plan.ClaudeTimeout)
	}
	return left
}

// agentStart is what an agent's start needs beside its row.
type agentStart struct {
	kind    string // of the credential
	session stromboli.Session
	secrets map[string]string // none for one that was started before
	left    time.Duration     // that the shim still gives it, unless 0
}

// startAgent gives the agent its message. An agent that was started before is
// not started again, and nothing is said to it twice.
func (e *execution) startAgent(ctx context.Context, s agentStart) error {
	opts := e.row.Spec.Claude
	process := shim.Process{
		ID:   e.id,
		Argv: append([]string{e.box.CLI}, claude.Args(opts, e.conversation(s.session, e.home(s.session)))...),
		Env: claude.Env(claude.EnvConfig{
			Image: e.box.ImageEnv, Home: e.box.Home, Endpoint: e.box.ProxyURL, CredentialKind: s.kind, MaxRetries: -1,
			Timezone: e.r.cfg.Timezone, Connect: sandbox.ConnectPath,
			Caller: e.row.Spec.Env, Secrets: s.secrets, Bundle: e.box.Trust().Bundle, Authority: e.box.Trust().Authority, Options: opts, TraceParent: e.traceParent(ctx),
		}),
		Secrets: e.secretFiles(),
		Dir:     e.box.Workdir, UID: e.box.UID, GID: e.box.GID, Deadline: max(e.timeLeft(), time.Millisecond),
	}
	if err := e.box.Peer.Start(ctx, process); err != nil {
		return fmt.Errorf("starting the agent: %w", err)
	}
	if s.left == 0 {
		s.left = e.timeLeft()
	}
	e.allow(s.left)
	if err := e.box.Peer.Stdin(ctx, messageFrame, claude.UserMessage(messageUUID(e.id), e.row.Spec)); err != nil {
		// An agent that reads nothing has ended, or will: its exit says why.
		if re, ok := errors.AsType[*shim.RemoteError](err); !ok || re.Code != shim.CodeStdinClosed {
			return fmt.Errorf("sending the message: %w", err)
		}
	}
	phase := stromboli.PhaseGenerating
	if e.row.Phase == phase { // the server before has said so
		return nil
	}
	data := stromboli.PhaseData{Phase: phase}
	if !e.accepted.IsZero() {
		data.Timing = &stromboli.StartTiming{TotalUS: time.Since(e.accepted).Microseconds(), EngineUS: e.box.EngineTime.Microseconds()}
	}
	return e.update(ctx, stromboli.RunUpdate{Phase: &phase, Events: []stromboli.Event{event(stromboli.EventPhase, data)}})
}

// reattach finds the sandbox that an earlier server made and rebuilds what
// that server knew from the events that it stored.
func (e *execution) reattach(ctx context.Context) error {
	// What was said is known even where the sandbox is gone.
	if err := e.replay(ctx); err != nil {
		return err
	}
	// A new egress must know the credential before the sandbox reaches it.
	kind, err := e.credential(ctx)
	if err != nil {
		kind = claude.APIKey // the agent runs already; its placeholder is given
	}
	if err := e.bindAgain(ctx); err != nil {
		return err
	}
	reach := e.reach()
	box, err := e.r.cfg.Sandboxes.Adopt(ctx, e.row.SandboxID, reach)
	if err != nil {
		return err
	}
	e.attach(box) //nolint:contextcheck // what is told to a sandbox ends with detach
	if err := e.keepReach(ctx, reach); err != nil {
		return err
	}
	session, err := e.session(ctx)
	if err != nil {
		return err
	}
	hello, err := box.Peer.Ready(ctx)
	if err != nil {
		return err
	}
	if hello.BootID != box.BootID {
		// Somebody has started the container again: the agent that was in it
		// is no more, and another one must not begin its work anew.
		return fmt.Errorf("sandbox %s was restarted: %w", box.ID, shim.ErrGone)
	}
	start := agentStart{kind: kind, session: session, left: hello.Agent.Left}
	if hello.Agent.ProcessID == "" { // the server before died before it asked for the agent
		if start.secrets, err = e.secrets(ctx); err != nil {
			return err
		}
	}
	if e.row.AgentStarted {
		return e.startAgent(ctx, start)
	}
	attestation, err := e.r.cfg.Store.Attestation(ctx, e.row.Tenant, e.id) // recorded before the first hook
	if err != nil && !errors.Is(err, stromboli.NotFound) {
		return fmt.Errorf("reading the run's attestation: %w", err)
	}
	if err == nil {
		box.Attestation = &attestation
	}
	return e.firstAgent(ctx, start)
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
			e.hooked.replay(ev)
		}
	}
}
