package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// selectSession reads whole sessions, in the order of scanSession.
const selectSession = `SELECT s.id, s.tenant, s.created_by, s.cli_session_id, coalesce(s.alias, ''), s.ephemeral, s.forked_from,
	s.fork_pending, s.fork_of, s.active_run, s.transcript_version, s.transcript_key, s.uid, s.gid, s.created_at, s.updated_at,
	s.title, s.run_count, s.cost_usd, s.deleted_at, s.create_hooks, s.sandbox, s.sandbox_since, s.sandbox_until FROM sessions s `

func scanSession(sc scanner) (out stromboli.Session, err error) {
	var created, updated, deleted, since, until int64
	var hooks string
	err = sc.Scan(&out.ID, &out.Tenant, &out.CreatedBy, &out.CLISessionID, &out.Alias, &out.Ephemeral, &out.ForkedFrom,
		&out.ForkPending, &out.ForkOf, &out.ActiveRun, &out.TranscriptVersion, &out.TranscriptKey, &out.UID, &out.GID, &created, &updated,
		&out.Title, &out.RunCount, &out.CostUSD, &deleted, &hooks, &out.Kept.ID, &since, &until)
	out.Deleting = deleted > 0
	out.CreatedAt, out.UpdatedAt = fromMillis(created), fromMillis(updated)
	if out.Kept.ID != "" {
		out.Kept.Since, out.Kept.Until = fromMillis(since), fromMillis(until)
	}
	if err == nil && hooks != "" {
		if err = json.Unmarshal([]byte(hooks), &out.Hooks); err != nil {
			err = fmt.Errorf("hooks of session %s: %w", out.ID, err)
		}
	}
	return out, err
}

// GetSession returns the session with an id or, if there is none, with an
// alias; NotFound where it is missing, being deleted, or another tenant's.
func (s *Store) GetSession(ctx context.Context, tenant, name string) (stromboli.Session, error) {
	out, err := scanSession(s.readDB.QueryRowContext(ctx,
		selectSession+`WHERE s.tenant = ? AND (s.id = ? OR s.alias = ?) AND s.deleted_at = 0 ORDER BY s.id = ? DESC LIMIT 1`, tenant, name, name, name))
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.Session{}, errNoSession(name)
	}
	if err != nil {
		return stromboli.Session{}, s.classify("read session", err)
	}
	return out, nil
}

// session reads a session inside a transaction; ok is false where there is
// none.
func (t *tx) session(where string, args ...any) (out stromboli.Session, ok bool, err error) {
	st, err := t.prepare(selectSession + where) //nolint:sqlclosecheck // the writer keeps it for the next call
	if err != nil {
		return stromboli.Session{}, false, err
	}
	out, err = scanSession(st.QueryRowContext(t.ctx, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.Session{}, false, nil
	}
	return out, err == nil, err
}

// freeSession ends a run's hold on its session. One that was to go with the
// run does, and so does a fork that was never made.
func (t *tx) freeSession(runID, sessionID string, now int64) error {
	n, err := t.exec(`DELETE FROM sessions WHERE id = ? AND active_run = ? AND (ephemeral = 1 OR fork_pending = 1)`, sessionID, runID)
	if err != nil {
		return err
	}
	if n > 0 {
		_, err = t.exec(`DELETE FROM session_workspaces WHERE session = ?`, sessionID)
		return err
	}
	_, err = t.exec(`UPDATE sessions SET active_run = '', updated_at = ? WHERE id = ? AND active_run = ?`, now, sessionID, runID)
	return err
}

// SaveTranscript names the blob that holds the session's newest transcript,
// where its version is still the expected one; the version is then one higher.
// ErrStale where it is not, NotFound without a session. The blob must be durable
// before the call; the one that it replaces is the caller's to delete.
func (s *Store) SaveTranscript(ctx context.Context, sessionID string, expectVersion int64, key string) error {
	_, err := write(ctx, s, "save transcript", func(t *tx) (struct{}, error) {
		return struct{}{}, s.saveTranscript(t, sessionID, expectVersion, key)
	})
	return err
}

func (s *Store) saveTranscript(t *tx, sessionID string, expect int64, key string) error {
	n, err := t.exec(`UPDATE sessions SET transcript_key = ?, transcript_version = transcript_version + 1, fork_of = '', updated_at = ?
		WHERE id = ? AND transcript_version = ?`, key, s.now().UnixMilli(), sessionID, expect)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.stale(sessionID, expect)
	}
	return nil
}
