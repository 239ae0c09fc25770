package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/tomblancdev/stromboli"
)

// GetSession returns a session; NotFound where it is missing or another
// tenant's.
func (s *Store) GetSession(ctx context.Context, tenant, id string) (stromboli.Session, error) {
	var out stromboli.Session
	var created, updated int64
	err := s.readDB.QueryRowContext(ctx, `SELECT id, tenant, created_by, cli_session_id, active_run, transcript_version,
		transcript_key, uid, gid, created_at, updated_at FROM sessions WHERE id = ? AND tenant = ?`, id, tenant).
		Scan(&out.ID, &out.Tenant, &out.CreatedBy, &out.CLISessionID, &out.ActiveRun, &out.TranscriptVersion,
			&out.TranscriptKey, &out.UID, &out.GID, &created, &updated)
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.Session{}, errNoSession(id)
	}
	if err != nil {
		return stromboli.Session{}, s.classify("read session", err)
	}
	out.CreatedAt, out.UpdatedAt = fromMillis(created), fromMillis(updated)
	return out, nil
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
	n, err := t.exec(`UPDATE sessions SET transcript_key = ?, transcript_version = transcript_version + 1, updated_at = ?
		WHERE id = ? AND transcript_version = ?`, key, s.now().UnixMilli(), sessionID, expect)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.stale(sessionID, expect)
	}
	return nil
}
