package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// Warnings about hooks.
const (
	warnHooksRepeated = "hooks_repeated"
	warnHooksNotRun   = "hooks_not_run"
	warnHooksAsAgent  = "hooks_as_agent"
)

// hook is one command.
type hook struct {
	stromboli.HookStartedData
	command string
	root    bool
}

func (h hook) String() string { return fmt.Sprintf("%s[%d]", h.Hook, h.Index) }

// hookProgress is how far a run's hooks have come, as stored events tell it.
type hookProgress struct {
	done int           // hooks that have ended
	used time.Duration // by them, by the shim's clock
	last stromboli.HookFinishedData
}

// ended notes a hook's end.
func (p *hookProgress) ended(d stromboli.HookFinishedData) {
	p.done, p.last = p.done+1, d
	p.used += time.Duration(d.DurationMS) * time.Millisecond
}

func (p *hookProgress) failed() bool {
	return p.done > 0 && (p.last.ExitCode != 0 || p.last.Cause != "")
}

// replay reads an event that an earlier server stored.
func (p *hookProgress) replay(ev stromboli.Event) {
	var d stromboli.HookFinishedData
	if ev.Type == stromboli.EventHookFinished && json.Unmarshal(ev.Data, &d) == nil {
		p.ended(d)
	}
}

// hookError ends a run whose hook failed.
type hookError struct {
	reason stromboli.Reason
	text   string
}

func (e *hookError) Error() string { return e.text }

// hooking reports whether hooks were begun and the agent was not: the sandbox
// is then kept, whoever dies, and no hook is run a second time.
func (e *execution) hooking() bool { return !e.row.AgentStarted && e.row.Phase == stromboli.PhaseHooks }

// hooksOf lists the run's hooks in their order.
func (e *execution) hooksOf(session stromboli.Session) []hook {
	var all []hook
	add := func(name string, root bool, commands []string) {
		for i, c := range commands {
			all = append(all, hook{stromboli.HookStartedData{Hook: name, Index: i}, c, root})
		}
	}
	if !e.box.Resumed {
		add(stromboli.HookOnCreate, e.box.RootHooks, session.Hooks.OnCreateCommand)
		add(stromboli.HookPostCreate, e.box.RootHooks, session.Hooks.PostCreate)
	}
	add(stromboli.HookPostStart, false, e.row.Spec.Podman.Lifecycle.PostStart)
	return all
}

// hookAdvice is what is to be said of the run's hooks.
func (e *execution) hookAdvice(session stromboli.Session) []stromboli.Warning {
	var all []stromboli.Warning
	again := e.row.Spec.Claude.Resume && !e.row.Spec.Claude.ForkSession
	creates := session.Hooks.Creates() && !e.box.Resumed
	if again && creates {
		all = append(all, stromboli.Warning{Code: warnHooksRepeated, Message: fmt.Sprintf(
			"the sandbox of the session's run before %s: the session's create hooks run again in a new one", cmp.Or(e.remade, "is gone"))})
	}
	if own := e.row.Spec.Podman.Lifecycle.Create(); again && own.Creates() && !reflect.DeepEqual(own, session.Hooks) {
		all = append(all, stromboli.Warning{
			Code:    warnHooksNotRun,
			Message: "on_create_command and post_create are those of a session's first run: what this request names beyond them is not run; use post_start, or a new session",
		})
	}
	if creates && e.r.cfg.RootHooks && !e.box.RootHooks {
		all = append(all, stromboli.Warning{
			Code:    warnHooksAsAgent,
			Message: "the create hooks run as the agent, not as the sandbox's root: that takes a user namespace of the sandbox's own or no volumes and, with a rootless engine, a server that is not in a container",
		})
	}
	return all
}

// runHooks runs what is left of the run's hooks, one after the other. A hookError
// says which failed.
func (e *execution) runHooks(ctx context.Context, s agentStart) error {
	list := e.hooksOf(s.session)
	if !e.hooking() {
		if err := e.announceHooks(ctx, len(list) > 0, e.hookAdvice(s.session)); err != nil {
			return err
		}
	}
	for e.hooked.done < len(list) && !e.hooked.failed() {
		if err := e.runHook(ctx, list, s); err != nil {
			return err
		}
	}
	if e.hooked.failed() {
		return e.hookFailure(list[min(e.hooked.done, len(list))-1])
	}
	return nil
}

// announceHooks records, before the first hook, that there may be effects of
// hooks: from then on the run has this sandbox or none.
func (e *execution) announceHooks(ctx context.Context, any bool, advice []stromboli.Warning) error {
	u := stromboli.RunUpdate{Warnings: advice}
	for _, w := range advice {
		u.Events = append(u.Events, event(stromboli.EventWarning, stromboli.WarningData(w)))
	}
	phase := stromboli.PhaseHooks
	if any {
		u.Phase, u.ImageDigest, u.Attestation = &phase, &e.box.ImageDigest, e.box.Attestation
		u.Events = append(u.Events, event(stromboli.EventPhase, stromboli.PhaseData{Phase: phase}))
	}
	if len(u.Events) == 0 {
		return nil
	}
	if err := e.update(ctx, u); err != nil {
		return err
	}
	if any {
		e.row.Phase = phase
	}
	return nil
}

// runHook starts the next hook, unless a server before has, and stores what comes of it.
func (e *execution) runHook(ctx context.Context, list []hook, s agentStart) error {
	h, done := list[e.hooked.done], e.hooked.done
	left := min(e.plan.HooksTimeout-e.hooked.used, e.plan.SandboxTimeout-e.box.Age())
	left = max(left, time.Millisecond)
	e.allow(left)
	env := claude.EnvConfig{
		Image: e.box.ImageEnv, Home: e.box.Home, Endpoint: e.box.ProxyURL, CredentialKind: s.kind, MaxRetries: -1,
		Timezone: e.r.cfg.Timezone, Connect: sandbox.ConnectPath, Caller: e.row.Spec.Env, Secrets: s.secrets, Bundle: e.box.Trust().Bundle, Authority: e.box.Trust().Authority, Options: e.row.Spec.Claude,
	}
	if h.root { // what root leaves in the agent's home the agent couldn't change
		env.Home, env.User = "/root", "root"
	}
	err := e.box.Peer.Hook(ctx, shim.Hook{
		ID: h.String(), Command: h.command, Env: claude.Env(env), Secrets: e.secretFiles(), Dir: e.box.Workdir, UID: e.box.UID, GID: e.box.GID, Root: h.root, Deadline: left,
	})
	if re, ok := errors.AsType[*shim.RemoteError](err); err != nil && (!ok || re.Code != shim.CodeStart) { // else its end is a line that says so
		return fmt.Errorf("starting hook %s: %w", h, err)
	}
	for e.hooked.done == done {
		lines, err := e.box.Peer.Next(ctx, e.row.LastLine, batchLines)
		if err != nil {
			return fmt.Errorf("reading the output of hook %s: %w", h, err)
		}
		e.moves()
		if err := e.storeHook(ctx, list, lines); err != nil {
			return err
		}
		e.box.Peer.Ack(e.row.LastLine)
	}
	return nil
}

// storeHook turns lines of hooks into events and stores them. What they tell of progress
// counts once it is durable.
func (e *execution) storeHook(ctx context.Context, list []hook, lines []shim.Line) error {
	progress := e.hooked
	var events []stromboli.Event
	for _, line := range lines {
		if progress.done >= len(list) {
			return fmt.Errorf("the sandbox tells of a hook that was not asked for (line %d)", line.Seq)
		}
		made, err := progress.feed(list[progress.done], line)
		if err != nil {
			return err
		}
		for i := range made {
			made[i].RunID, made[i].Line, made[i].Index, made[i].At = e.id, line.Seq, i, line.At
		}
		events = append(events, made...)
	}
	err := e.persist(ctx, func() error {
		_, err := e.r.cfg.Log.Append(ctx, e.id, e.row.Epoch, events)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing the hooks' events: %w", err)
	}
	e.hooked, e.row.LastLine = progress, lines[len(lines)-1].Seq
	return nil
}

// feed makes the events of a line of the hook at work.
func (p *hookProgress) feed(h hook, line shim.Line) ([]stromboli.Event, error) {
	switch line.Stream {
	case shim.HookStart:
		return []stromboli.Event{event(stromboli.EventHookStarted, h.HookStartedData)}, nil
	case shim.HookStdout, shim.HookStderr:
		stream := claude.Stdout
		if line.Stream == shim.HookStderr {
			stream = claude.Stderr
		}
		events := []stromboli.Event{event(stromboli.EventHookOutput, stromboli.HookOutputData{
			HookStartedData: h.HookStartedData, Stream: stream, Text: strings.ToValidUTF8(string(line.Data), "\uFFFD"),
		})}
		if line.Dropped > 0 {
			events = append(events, event(stromboli.EventCut, stromboli.CutLineData{Line: line.Seq, Kept: int64(len(line.Data)), Dropped: line.Dropped}))
		}
		return events, nil
	case shim.HookExit:
		s, err := shim.ParseHookExit(line.Data)
		if err != nil {
			return nil, err
		}
		d := stromboli.HookFinishedData{
			HookStartedData: h.HookStartedData, ExitCode: s.ExitCode, DurationMS: s.Duration.Milliseconds(),
			Signal: s.Signal, Cause: s.Cause, OOM: s.OOM, DroppedBytes: s.Dropped, Error: s.Error,
		}
		p.ended(d)
		return []stromboli.Event{event(stromboli.EventHookFinished, d)}, nil
	case shim.Stdout, shim.Stderr, shim.StdinRecord, shim.Exit:
	}
	return nil, fmt.Errorf("the sandbox sent a line of %s before there was an agent", line.Stream)
}

// hookFailure says how the last hook that ended has failed.
func (e *execution) hookFailure(h hook) error {
	d := e.hooked.last
	fail := func(reason stromboli.Reason, format string, args ...any) error {
		return &hookError{reason, fmt.Sprintf("hook %s ", h) + fmt.Sprintf(format, args...)}
	}
	switch d.Cause {
	case claude.CauseDisk:
		if why := e.overDisk(); why != "" {
			return &hookError{stromboli.ReasonDisk, why}
		}
		return fail(stromboli.ReasonDisk, "was ended: the sandbox took more of the disk than its limit (STROMBOLI_RESOURCES_DISK)")
	case shim.CauseOrphaned:
		return fail(stromboli.ReasonOrphaned, "was ended: no server was there for longer than STROMBOLI_ORPHAN_TIMEOUT")
	case shim.CauseDeadline:
		if e.box.Age() >= e.plan.SandboxTimeout {
			return fail(stromboli.ReasonTimeout, "was ended: the run passed its time limit")
		}
		return fail(stromboli.ReasonHook, "did not end in time and was ended: all hooks together have %s (podman.lifecycle.hooks_timeout)", e.plan.HooksTimeout)
	case shim.CauseNotStarted:
		return fail(stromboli.ReasonHook, "could not be started (exit code %d): %s", d.ExitCode, d.Error)
	}
	switch {
	case d.OOM:
		return fail(stromboli.ReasonHook, "failed with exit code %d: its memory was used up; podman.memory sets the limit", d.ExitCode)
	case d.Signal != "":
		return fail(stromboli.ReasonHook, "failed with exit code %d (%s)", d.ExitCode, d.Signal)
	}
	return fail(stromboli.ReasonHook, "failed with exit code %d", d.ExitCode)
}
