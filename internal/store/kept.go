package store

import (
	"context"

	"github.com/tomblancdev/stromboli"
)

// keepSandbox notes which sandbox a session keeps; nil changes nothing.
func (t *tx) keepSandbox(session string, k *stromboli.KeptSandbox) error {
	if k == nil {
		return nil
	}
	var since, until int64
	if k.ID != "" {
		since, until = k.Since.UnixMilli(), k.Until.UnixMilli()
	}
	_, err := t.exec(`UPDATE sessions SET sandbox = ?, sandbox_since = ?, sandbox_until = ? WHERE id = ?`, k.ID, since, until, session)
	return err
}

// KeptSandboxes returns the sessions that have a kept sandbox, those that are
// being deleted and those with a run in it included, the longest kept first.
func (s *Store) KeptSandboxes(ctx context.Context) ([]stromboli.Session, error) {
	rows, err := s.readDB.QueryContext(ctx, selectSession+`WHERE s.sandbox <> '' ORDER BY s.sandbox_since, s.id`)
	if err != nil {
		return nil, s.classify("read kept sandboxes", err)
	}
	list, err := collect(rows, func(sc scanner) (stromboli.Session, error) { return scanSession(sc) })
	return list, s.classify("read kept sandboxes", err)
}

// ForgetSandbox takes a kept sandbox from its session, so that no run can begin
// in it any more, durably; the sandbox itself is then the caller's to discard.
// runID is the run that holds the session and has found the sandbox unusable;
// empty for a session that none holds. It reports false, and changes nothing,
// where the session is held by another, or keeps another sandbox or none.
func (s *Store) ForgetSandbox(ctx context.Context, sessionID, sandboxID, runID string) (bool, error) {
	return write(ctx, s, "forget kept sandbox", func(t *tx) (bool, error) {
		n, err := t.exec(`UPDATE sessions SET sandbox = '', sandbox_since = 0, sandbox_until = 0
			WHERE id = ? AND sandbox = ? AND sandbox <> '' AND active_run = ?`, sessionID, sandboxID, runID)
		return n > 0, err
	})
}
