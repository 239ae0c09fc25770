package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
)

const (
	// lastWords is how long a stopping server still tries to record an end
	// that is decided.
	lastWords   = 30 * time.Second
	discardTime = 30 * time.Second
)

// ended is the outcome of an agent that has exited.
func (e *execution) ended() stromboli.Outcome {
	out := e.turn.Outcome(&claude.Exit{
		Code: e.exit.ExitCode, Signal: e.exit.Signal, OOM: e.exit.OOM, Cause: e.exit.Cause,
	})
	if reason := e.wished(); reason != "" {
		c := e.cancelled(reason)
		c.Output, c.Usage = out.Output, out.Usage
		return c
	}
	if why := e.overDisk(); why != "" && out.Reason == stromboli.ReasonDisk {
		out.Error = why
	}
	return out
}

// lost is the outcome of a run whose sandbox is gone.
func (e *execution) lost() stromboli.Outcome {
	if reason := e.wished(); reason != "" {
		return e.cancelled(reason)
	}
	if why := e.overDisk(); why != "" {
		out := e.turn.Outcome(&claude.Exit{Signal: "SIGKILL", Cause: claude.CauseDisk})
		if out.Reason == stromboli.ReasonDisk {
			out.Error = why
		}
		return out
	}
	if e.box != nil && e.box.Overdue() {
		return e.turn.Outcome(&claude.Exit{Signal: "SIGKILL", Cause: claude.CauseDeadline})
	}
	out := e.turn.Outcome(nil)
	out.Status, out.Reason = stromboli.Crashed, stromboli.ReasonLost
	out.Error = "the run's sandbox is gone: the machine was restarted, or the container was removed by others"
	if e.box != nil && e.box.OutOfMemory() {
		out.Reason = stromboli.ReasonOOM
		out.Error = "the sandbox was killed because its memory was used up; podman.memory sets its limit"
	}
	if out.CrashInfo == nil {
		out.CrashInfo = &stromboli.CrashInfo{ExitCode: -1}
	}
	out.CrashInfo.Reason = out.Error
	return out
}

func (e *execution) failed(reason stromboli.Reason, err error) stromboli.Outcome {
	msg := err.Error()
	if se, ok := errors.AsType[*stromboli.Error](err); ok {
		msg = se.Message
	}
	e.log.Warn("the run can't be carried out", "reason", reason, "error", err)
	return stromboli.Outcome{Status: stromboli.Failed, Reason: reason, Error: msg}
}

func (e *execution) cancelled(reason stromboli.Reason) stromboli.Outcome {
	msg := "the run was cancelled"
	if reason == stromboli.ReasonDisconnect {
		msg = "the run was cancelled because its caller went away"
	}
	return stromboli.Outcome{Status: stromboli.Cancelled, Reason: reason, Error: msg}
}

// finish saves the transcript and ends the run in one transaction with its
// last events. The session is free again from then on.
func (e *execution) finish(ctx context.Context, out stromboli.Outcome) error {
	// Once the end is decided a stop of the server doesn't cut it short.
	ctx, cancel := linger(ctx, lastWords)
	defer cancel()

	f := stromboli.RunFinish{Outcome: out}
	f.Outcome.SessionID = e.row.SessionID
	f.Events = append(f.Events, event(stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.PhaseFinishing}))
	if e.exit != nil && e.exit.Cause == causeBackground {
		f.Events = append(f.Events, event(stromboli.EventBackgroundEnded, stromboli.BackgroundEndedData{Tasks: e.waitedFor}))
	}
	if err := e.lastRecords(ctx); err != nil {
		e.log.WarnContext(ctx, "reading the last records of connections", "error", err)
		e.warn(&f, "egress_records_incomplete", errors.New("the records of the run's last connections could not be read; those before are in GET /jobs/{id}/egress"))
	}
	e.lastSpans(ctx)
	old, err := e.saveTranscript(ctx, &f)
	if err != nil {
		return err
	}
	if err := e.keep(ctx, &f); err != nil {
		return err
	}
	err = e.persist(ctx, func() error {
		e.ending.Lock()
		defer e.ending.Unlock()
		if reason := e.wished(); reason != "" && f.Outcome.Status != stromboli.Cancelled {
			c := e.cancelled(reason)
			c.Output, c.Usage, c.SessionID = f.Outcome.Output, f.Outcome.Usage, f.Outcome.SessionID
			f.Outcome = c
		}
		_, err := e.r.cfg.Store.FinishRun(ctx, e.id, e.row.Epoch, f)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the run's end: %w", err)
	}
	e.r.cfg.Log.Wake(e.id)
	e.log.InfoContext(ctx, "run ended", "status", f.Outcome.Status, "reason", f.Outcome.Reason)
	e.compareUsage(ctx, f.Outcome.Usage)
	if old != "" && old != f.Session.TranscriptKey {
		if err := e.r.cfg.Blobs.Delete(ctx, old); err != nil {
			e.log.WarnContext(ctx, "deleting the transcript's version before", "error", err)
		}
	}
	return nil
}

// saveTranscript copies the transcript from the session's home into the blob
// store and returns the key of the version before.
func (e *execution) saveTranscript(ctx context.Context, f *stromboli.RunFinish) (old string, err error) {
	session, err := e.session(ctx)
	switch {
	case errors.Is(err, stromboli.SessionUnusable):
		e.warn(f, "transcript_not_saved", err)
		return "", nil
	case err != nil:
		return "", err
	case session.ForkPending: // the copy may be in its place without being recorded
		if err := e.r.cfg.Sandboxes.RemoveSession(session.ID); err != nil {
			e.log.ErrorContext(ctx, "removing a fork that is not to be", "error", err)
		}
		return "", nil
	}
	f.Session = stromboli.SessionSave{
		CLISessionID: session.CLISessionID, UID: session.UID, GID: session.GID, ExpectVersion: session.TranscriptVersion,
	}
	if !e.row.AgentStarted {
		return "", nil
	}
	if e.box != nil { // it may be gone without having been found again
		f.Session.UID, f.Session.GID = e.box.UID, e.box.GID
	}
	if !e.keepsConversation(session) {
		return "", nil
	}
	if id := e.turn.SessionID(); id != "" {
		f.Session.CLISessionID = id
	}
	home := e.r.cfg.Sandboxes.Home(session.ID, f.Session.UID, f.Session.GID)
	key := transcriptKey(session.ID, session.TranscriptVersion+1, e.id)
	var unreadable error
	err = e.persist(ctx, func() error {
		var src io.ReadCloser
		if src, unreadable = home.ReadTranscript(f.Session.CLISessionID); unreadable != nil {
			return nil
		}
		defer func() { _ = src.Close() }()
		_, err := e.r.cfg.Blobs.Put(ctx, key, src)
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return "", fmt.Errorf("saving the transcript: %w", err)
	case err != nil: // it stays in the session's home; the run must end all the same
		e.log.ErrorContext(ctx, "saving the transcript", "error", err)
		e.warn(f, "transcript_not_saved", errors.New("the transcript could not be stored"))
		return "", nil
	case errors.Is(unreadable, fs.ErrNotExist) && !e.turn.Answered():
		return "", nil // the agent died before it said anything
	case unreadable != nil: // the agent made something else of the file
		e.warn(f, "transcript_not_saved", unreadable)
		return "", nil //nolint:nilerr // told as a warning
	}
	f.Session.TranscriptKey = key
	return session.TranscriptKey, nil
}

func (e *execution) warn(f *stromboli.RunFinish, code string, err error) {
	w := stromboli.Warning{Code: code, Message: err.Error()}
	f.Outcome.Warnings = append(f.Outcome.Warnings, w)
	f.Events = append(f.Events, event(stromboli.EventWarning, stromboli.WarningData(w)))
}

// discard removes the sandbox of a run that has ended, or stops it where it is
// kept, and reports whether that worked. The outcome is durable already.
func (e *execution) discard(ctx context.Context) bool {
	if e.row.SandboxID == "" {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTime)
	defer cancel()
	do, what := e.r.cfg.Sandboxes.Discard, "discarding the sandbox"
	if e.keeping {
		what = "stopping the sandbox"
		do = func(ctx context.Context, id string) error { return e.r.cfg.Sandboxes.Keep(ctx, id, e.id) }
	}
	if err := do(ctx, e.row.SandboxID); err != nil {
		e.log.ErrorContext(ctx, what, "sandbox", e.row.SandboxID, "error", err)
		return false
	}
	e.r.changed()
	e.box = nil
	return true
}

// letGo leaves the sandbox, if there is one, running for whoever comes next.
func (e *execution) letGo() {
	if e.box == nil {
		return
	}
	if err := e.r.cfg.Sandboxes.Release(e.box); err != nil {
		e.log.Debug("closing the sandbox's socket", "error", err)
	}
	e.box = nil
}

// linger returns a context that ends a while after ctx does.
func linger(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(d):
			cancel()
		case <-longer.Done():
		}
	})
	return longer, func() { stop(); cancel() }
}

func event(t stromboli.EventType, data any) stromboli.Event {
	b, err := json.Marshal(data)
	if err != nil { // our own types always marshal
		b = []byte("{}")
	}
	return stromboli.Event{Type: t, At: time.Now().UTC(), Data: b}
}

// messageUUID names the run's message to the CLI, which runs one uuid once.
func messageUUID(runID string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(runID)).String()
}
