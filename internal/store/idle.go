package store

import (
	"context"
	"time"

	"github.com/tomblancdev/stromboli"
)

// idle are sessions that nobody has used since a time and that nothing needs: no
// run of theirs is remembered, none of their webhooks' messages, no sandbox is kept
// for them, and no fork of them waits to be made.
const idle = `s.updated_at < ? AND s.active_run = '' AND s.ephemeral = 0 AND s.deleted_at = 0 AND s.sandbox = ''
	AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.session_id = s.id)
	AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.session_id = s.id)
	AND NOT EXISTS (SELECT 1 FROM sessions f WHERE f.forked_from = s.id AND f.fork_pending = 1)`

// IdleSessions returns up to limit sessions of all tenants that nobody has used
// since a time and that no row needs, the longest idle first,
// after another of such a list; that is zero at first.
func (s *Store) IdleSessions(ctx context.Context, before time.Time, after stromboli.Session, limit int) ([]stromboli.Session, error) {
	rows, err := s.readDB.QueryContext(ctx, selectSession+`WHERE `+idle+` AND (s.updated_at, s.id) > (?, ?)
		ORDER BY s.updated_at, s.id LIMIT ?`, before.UnixMilli(), after.UpdatedAt.UnixMilli(), after.ID, limit)
	if err != nil {
		return nil, s.classify("read idle sessions", err)
	}
	list, err := collect(rows, func(sc scanner) (stromboli.Session, error) { return scanSession(sc) })
	return list, s.classify("read idle sessions", err)
}

// DeleteIdleSession does what DeleteSession does with a session that IdleSessions
// would return still; NotFound for any other.
func (s *Store) DeleteIdleSession(ctx context.Context, id string, before time.Time) (stromboli.Session, error) {
	return write(ctx, s, "delete idle session", func(t *tx) (stromboli.Session, error) {
		have, ok, err := t.session(`WHERE s.id = ? AND `+idle, id, before.UnixMilli())
		if err == nil && !ok {
			err = stromboli.Errorf(stromboli.NotFound, "session %s is not idle", id)
		}
		if err != nil {
			return have, err
		}
		return s.markDeleted(t, have)
	})
}
