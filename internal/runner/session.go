package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// session reads the run's session as it is now.
func (e *execution) session(ctx context.Context) (stromboli.Session, error) {
	s, err := e.r.cfg.Store.GetSession(ctx, e.row.Tenant, e.row.SessionID)
	if errors.Is(err, stromboli.NotFound) {
		return s, stromboli.Errorf(stromboli.SessionUnusable, "the session was deleted while the run waited for its turn: %w", err)
	}
	if err != nil {
		return s, fmt.Errorf("reading the session: %w", err)
	}
	return s, nil
}

// home is the home directory of the run's session, as its sandbox has it.
func (e *execution) home(session stromboli.Session) sandbox.Home {
	if session.Ephemeral {
		return e.r.cfg.Sandboxes.HomeOf(e.box)
	}
	return e.r.cfg.Sandboxes.Home(session.ID, e.box.UID, e.box.GID)
}

// conversation says what the CLI is to do: go on with the session's
// conversation, fork its source's, or begin one. A session whose runs so far
// ended before the agent spoke has none to go on with.
func (e *execution) conversation(session stromboli.Session, home sandbox.Home) claude.Session {
	s := claude.Session{ID: session.CLISessionID}
	switch {
	case !e.row.Spec.Claude.Resume: // it is new
	case session.ForkOf == "" && session.TranscriptKey != "", home.HasTranscript(s.ID):
		s.Resume = true
	case session.ForkOf != "" && home.HasTranscript(session.ForkOf):
		s.ForkOf = session.ForkOf
	}
	return s
}

// prepareHome readies the home of a session that was used before: its saved
// transcript is put there, whatever the agent made of the place.
func (e *execution) prepareHome(ctx context.Context, session stromboli.Session, home sandbox.Home) error {
	if session.ForkOf != "" {
		if err := home.Repair(session.ForkOf); err != nil {
			return err
		}
	}
	if session.TranscriptKey == "" {
		return home.Repair(session.CLISessionID)
	}
	return e.putTranscript(ctx, session.TranscriptKey, session.CLISessionID, home)
}

// putTranscript puts a saved transcript into a home. Where it is gone from the
// store the home's own copy has to do.
func (e *execution) putTranscript(ctx context.Context, key, conversation string, home sandbox.Home) error {
	src, err := e.r.cfg.Blobs.Get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		if err := home.Repair(conversation); err != nil {
			return err
		}
		if home.HasTranscript(conversation) {
			e.log.WarnContext(ctx, "the session's saved transcript is gone; the copy in its home is used", "key", key)
			return nil
		}
		return stromboli.Errorf(stromboli.SessionUnusable, "the session's transcript is gone from the server's disk: there is nothing to resume; begin a new session")
	}
	if err != nil {
		return fmt.Errorf("reading the session's transcript: %w", err)
	}
	defer func() { _ = src.Close() }()
	return home.WriteTranscript(conversation, src)
}

// fork has the sandbox's making begin with a copy of the session's source. The
// source is ours until the copy is recorded: no run of its own can begin.
func (e *execution) fork(ctx context.Context, session *stromboli.Session, spec *sandbox.Spec) error {
	source, err := e.r.cfg.Store.GetSession(ctx, e.row.Tenant, session.ForkedFrom)
	if errors.Is(err, stromboli.NotFound) {
		return stromboli.Errorf(stromboli.SessionUnusable, "the session to fork was deleted: %w", err)
	}
	if err != nil {
		return fmt.Errorf("reading the session to fork: %w", err)
	}
	spec.CopyFrom = source.ID
	spec.Copied = func(home sandbox.Home, unread int) error {
		conversation, err := e.sourceConversation(ctx, source, home)
		if err != nil {
			return err
		}
		u := stromboli.RunUpdate{Forked: &conversation}
		if unread > 0 {
			w := stromboli.Warning{
				Code:    "fork_incomplete",
				Message: fmt.Sprintf("%d files or directories of the session could not be read and were not copied", unread),
			}
			u.Warnings, u.Events = []stromboli.Warning{w}, []stromboli.Event{event(stromboli.EventWarning, stromboli.WarningData(w))}
		}
		if err := e.update(ctx, u); err != nil {
			return err
		}
		session.ForkPending, session.ForkOf = false, conversation
		return nil
	}
	return nil
}

// sourceConversation makes sure that the copied home holds the source's
// conversation, and names it; it is empty where the source has none.
func (e *execution) sourceConversation(ctx context.Context, source stromboli.Session, home sandbox.Home) (string, error) {
	switch {
	case source.ForkOf == "" && source.TranscriptKey != "":
		return source.CLISessionID, e.putTranscript(ctx, source.TranscriptKey, source.CLISessionID, home)
	case home.HasTranscript(source.CLISessionID):
		return source.CLISessionID, nil
	case source.ForkOf != "" && home.HasTranscript(source.ForkOf):
		return source.ForkOf, nil
	}
	return "", nil
}

// keepsConversation reports whether what the agent says is kept.
func (e *execution) keepsConversation(session stromboli.Session) bool {
	return !session.Ephemeral && !e.row.Spec.Claude.NoPersistence
}
