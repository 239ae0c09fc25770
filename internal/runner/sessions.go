package runner

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// transcriptKey names the blob of a session's transcript after a run. All those
// of a session lie below one key.
func transcriptKey(sessionID string, version int64, by string) string {
	return fmt.Sprintf("%s/%d-%s.jsonl", transcriptsOf(sessionID), version, by)
}

// transcripts holds what runs have saved, below their sessions' ids.
const transcripts = "transcripts"

func transcriptsOf(sessionID string) string { return transcripts + "/" + sessionID }

// sessionName is what the store knows a session by. What can't be one's name is
// Invalid.
func sessionName(name string) (string, error) {
	id, alias := claude.SessionName(name)
	if id == "" && alias == "" {
		return "", stromboli.FieldError("session_id", "is neither a session's UUID nor an alias")
	}
	return id + alias, nil
}

// Session returns a session by its id or alias.
func (r *Runner) Session(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, error) {
	name, err := sessionName(name)
	if err != nil {
		return stromboli.Session{}, err
	}
	s, err := r.cfg.Store.GetSession(ctx, p.Tenant, name)
	if err == nil && s.Ephemeral { // it is its run's alone
		err = stromboli.Errorf(stromboli.NotFound, "there is no session %q", name)
	}
	return s, err
}

// ListSessions returns the tenant's sessions, newest first, and the cursor of
// the next page.
func (r *Runner) ListSessions(ctx context.Context, p stromboli.Principal, f stromboli.SessionFilter) ([]stromboli.Session, string, error) {
	f.Tenant = p.Tenant
	return r.cfg.Store.ListSessions(ctx, f)
}

// Transcript opens a session's transcript as it was at the end of the last run.
// NotFound where there is no session, or nothing is saved yet.
func (r *Runner) Transcript(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, io.ReadCloser, error) {
	// A run that ends meanwhile replaces the blob: then it is looked up again.
	for try := 0; ; try++ {
		s, err := r.Session(ctx, p, name)
		if err != nil {
			return s, nil, err
		}
		if s.TranscriptKey == "" {
			return s, nil, stromboli.Errorf(stromboli.NotFound, "session %s has no transcript yet: its first run has not ended, or its agent never answered", s.ID)
		}
		src, err := r.cfg.Blobs.Get(ctx, s.TranscriptKey)
		if errors.Is(err, fs.ErrNotExist) && try < 3 {
			continue
		}
		if err != nil {
			return s, nil, fmt.Errorf("reading the transcript of session %s: %w", s.ID, err)
		}
		return s, src, nil
	}
}

// Messages returns a page of a session's conversation; an empty one while
// nothing is saved.
func (r *Runner) Messages(ctx context.Context, p stromboli.Principal, name string, offset, limit int) (stromboli.MessagePage, error) {
	s, src, err := r.Transcript(ctx, p, name)
	if errors.Is(err, stromboli.NotFound) && s.ID != "" {
		return stromboli.MessagePage{Messages: []stromboli.Message{}}, nil
	}
	if err != nil {
		return stromboli.MessagePage{}, err
	}
	defer func() { _ = src.Close() }()
	return claude.Messages(cancellable{ctx, src}, offset, limit)
}

// Message returns one message of a session, whole.
func (r *Runner) Message(ctx context.Context, p stromboli.Principal, name, id string) (stromboli.Message, error) {
	missing := func(s stromboli.Session) error {
		return stromboli.Errorf(stromboli.NotFound, "session %s has no message %q", s.ID, id)
	}
	s, src, err := r.Transcript(ctx, p, name)
	if errors.Is(err, stromboli.NotFound) && s.ID != "" {
		return stromboli.Message{}, missing(s)
	}
	if err != nil {
		return stromboli.Message{}, err
	}
	defer func() { _ = src.Close() }()
	m, ok, err := claude.FindMessage(cancellable{ctx, src}, id)
	if err == nil && !ok {
		err = missing(s)
	}
	return m, err
}

// cancellable ends the reading of a large file when nobody waits for it.
type cancellable struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// DeleteSession removes a session and all that belongs to it: transcript, home,
// workspace, its runs and their events. On return without an error it is gone;
// after an error it is gone for every caller all the same, and the server goes
// on removing what is left. SessionBusy while a run holds it.
func (r *Runner) DeleteSession(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, error) {
	name, err := sessionName(name)
	if err != nil {
		return stromboli.Session{}, err
	}
	done, err := r.enter()
	if err != nil {
		return stromboli.Session{}, err
	}
	defer done()
	s, err := r.cfg.Store.DeleteSession(ctx, p.Tenant, name)
	if err != nil {
		return s, err
	}
	if err := r.remove(ctx, s); err != nil {
		r.executions.Go(func() { r.removeLater(r.base, s) })
		return s, fmt.Errorf("removing what belongs to session %s: %w", s.ID, err)
	}
	return s, nil
}

// remove removes what belongs to a deleted session. It may be repeated; who
// asks while somebody removes it waits for that. The row goes last: as long as
// it is there somebody goes on, and nobody can make a session of that id. Once
// it is gone somebody may have, whose files are none of ours.
func (r *Runner) remove(ctx context.Context, s stromboli.Session) error {
	_, err, _ := r.removals.Do(s.ID, func() (any, error) {
		deleted, err := r.cfg.Store.DeletedSessions(ctx)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(deleted, func(d stromboli.Session) bool { return d.ID == s.ID })
		if i < 0 {
			return nil, nil //nolint:nilnil // there is no value
		}
		if kept := deleted[i].Kept.ID; kept != "" {
			if err := r.cfg.Sandboxes.Discard(ctx, kept); err != nil {
				return nil, err
			}
		}
		if err := r.cfg.Sandboxes.RemoveSession(s.ID); err != nil {
			return nil, err
		}
		if key := deleted[i].TranscriptKey; key != "" {
			if err := r.cfg.Blobs.Delete(ctx, key); err != nil {
				return nil, err
			}
		}
		if err := r.cfg.Blobs.DeleteAll(ctx, transcriptsOf(s.ID)); err != nil {
			return nil, err
		}
		if r.cfg.Archives != nil {
			if err := r.cfg.Archives.DeleteSession(ctx, s.ID); err != nil {
				return nil, err
			}
		}
		return nil, r.cfg.Store.ForgetSession(ctx, s.ID)
	})
	return err
}

// removeDeleted goes on with the deletions that a server before did not end.
func (r *Runner) removeDeleted(ctx context.Context) {
	list, err := r.cfg.Store.DeletedSessions(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.ErrorContext(ctx, "reading the sessions that are being deleted", "error", err)
	}
	for _, s := range list {
		r.executions.Go(func() { r.removeLater(ctx, s) })
	}
}

func (r *Runner) removeLater(ctx context.Context, s stromboli.Session) {
	for delay := retryLast; ; delay = min(2*delay, giveUp) {
		err := r.remove(ctx, s)
		if err == nil || ctx.Err() != nil {
			return
		}
		r.log.ErrorContext(ctx, "removing a deleted session", "session", s.ID, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// importPeek is where a transcript must tell its session's id.
const importPeek = 1 << 20

// ImportSession makes a session of a transcript that comes from elsewhere,
// durable on return; runs can resume it. Name is its id, or an alias, with which
// it gets a new id; empty, it gets the transcript's own. Invalid where it is not
// a transcript, SessionExists where the id or alias is taken.
func (r *Runner) ImportSession(ctx context.Context, p stromboli.Principal, name string, src io.Reader) (stromboli.Session, error) {
	s := stromboli.Session{Tenant: p.Tenant, CreatedBy: p.Name, CreatedAt: r.now(), TranscriptVersion: 1}
	if name != "" {
		if s.ID, s.Alias = claude.SessionName(name); s.ID == "" && s.Alias == "" {
			return s, stromboli.FieldError("session_id", "is neither a UUID nor an alias")
		}
	}
	if err := r.room(ctx); err != nil {
		return s, err
	}
	in := bufio.NewReaderSize(io.LimitReader(src, sandbox.MaxTranscript+1), importPeek)
	begin, err := in.Peek(importPeek)
	if err != nil && !errors.Is(err, io.EOF) {
		return s, readError(err)
	}
	if name == "" {
		info, err := claude.CheckTranscript(bytes.NewReader(begin))
		if err != nil && len(begin) < importPeek {
			return s, err
		}
		s.ID = info.SessionID
	}
	if s.ID == "" {
		s.ID = uuid.NewString()
	}
	// Not below the session's own key: one of that id may just be removed.
	s.TranscriptKey = imports + "/" + stromboli.NewToken() + ".jsonl"
	defer r.importsInto(s.TranscriptKey)()
	if err := r.importTranscript(ctx, &s, in); err != nil {
		cleanUp, cancel := linger(ctx, lastWords)
		defer cancel()
		return s, errors.Join(err, r.cfg.Blobs.Delete(cleanUp, s.TranscriptKey))
	}
	return s, nil
}

func (r *Runner) importTranscript(ctx context.Context, s *stromboli.Session, in io.Reader) error {
	n, err := r.cfg.Blobs.Put(ctx, s.TranscriptKey, in)
	if err != nil {
		return readError(err)
	}
	if n > sandbox.MaxTranscript {
		return stromboli.Errorf(stromboli.TooLarge, "the transcript is larger than %d bytes", int64(sandbox.MaxTranscript))
	}
	src, err := r.cfg.Blobs.Get(ctx, s.TranscriptKey)
	if err != nil {
		return fmt.Errorf("reading the transcript that was stored: %w", err)
	}
	defer func() { _ = src.Close() }()
	info, err := claude.CheckTranscript(cancellable{ctx, src})
	if err != nil {
		return err
	}
	s.Title, s.CLISessionID = info.Title, info.SessionID
	if s.CLISessionID == "" {
		s.CLISessionID = s.ID
	}
	// Nobody is left to take the blob away if the caller goes now.
	return r.cfg.Store.CreateSession(context.WithoutCancel(ctx), *s)
}

// readError is a transcript that did not arrive whole; an error with a code says
// itself what is wrong.
func readError(err error) error {
	if _, ok := errors.AsType[*stromboli.Error](err); ok {
		return err
	}
	return fmt.Errorf("receiving the transcript: %w", err)
}
