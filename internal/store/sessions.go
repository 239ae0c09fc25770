package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// ListSessions returns a page of a tenant's sessions, newest first (at most
// 1,000, which is also the default of Limit), and the cursor of the next page,
// which is empty after the last. Ephemeral sessions and those being deleted are
// left out. An unusable cursor is an Invalid error on the field cursor.
func (s *Store) ListSessions(ctx context.Context, f stromboli.SessionFilter) (list []stromboli.Session, next string, err error) {
	if f.Tenant == "" {
		return nil, "", errors.New("list sessions: a tenant is required")
	}
	if f.Limit <= 0 || f.Limit > defaultLimit {
		f.Limit = defaultLimit
	}
	b := &queryBuilder{}
	b.add(selectSession+"WHERE s.tenant = ? AND s.ephemeral = 0 AND s.deleted_at = 0", f.Tenant)
	if f.Alias != "" {
		b.add(" AND s.alias = ?", f.Alias)
	}
	if !f.Since.IsZero() {
		b.add(" AND s.created_at >= ?", f.Since.UnixMilli())
	}
	if f.Active != nil && *f.Active {
		b.add(" AND s.active_run <> ''")
	} else if f.Active != nil {
		b.add(" AND s.active_run = ''")
	}
	if f.Cursor != "" {
		at, id, err := decodeSessionCursor(f.Cursor)
		if err != nil {
			return nil, "", err
		}
		b.add(" AND (s.created_at, s.id) < (?, ?)", at, id)
	}
	b.add(" ORDER BY s.created_at DESC, s.id DESC LIMIT ?", f.Limit+1)
	rows, err := s.readDB.QueryContext(ctx, b.text.String(), b.args...)
	if err != nil {
		return nil, "", s.classify("list sessions", err)
	}
	if list, err = collect(rows, func(sc scanner) (stromboli.Session, error) { return scanSession(sc) }); err != nil {
		return nil, "", s.classify("list sessions", err)
	}
	if len(list) > f.Limit {
		list = list[:f.Limit]
		last := list[f.Limit-1]
		next = strconv.FormatInt(last.CreatedAt.UnixMilli(), 36) + "." + last.ID
	}
	return list, next, nil
}

func decodeSessionCursor(c string) (at int64, id string, err error) {
	left, id, ok := strings.Cut(c, ".")
	at, err = strconv.ParseInt(left, 36, 64)
	if !ok || err != nil || id == "" {
		return 0, "", stromboli.FieldError("cursor", "is not a cursor of this list").WithCause(fmt.Errorf("cursor %q", c))
	}
	return at, id, nil
}

// CreateSession stores a session that no run has made: id, tenant, conversation,
// alias, title and the transcript, whose blob is durable already. Conflict where
// the id or the tenant's alias is taken.
func (s *Store) CreateSession(ctx context.Context, in stromboli.Session) error {
	_, err := write(ctx, s, "create session", func(t *tx) (struct{}, error) {
		var taken int
		if err := t.scan(`SELECT count(*) FROM sessions WHERE id = ? OR (tenant = ? AND alias = ?)`, []any{in.ID, in.Tenant, in.Alias}, &taken); err != nil {
			return struct{}{}, err
		}
		if taken > 0 {
			return struct{}{}, stromboli.Errorf(stromboli.SessionExists, "there is a session of that name already; delete it first, or give another session_id")
		}
		var alias *string
		if in.Alias != "" {
			alias = &in.Alias
		}
		now := s.millis(in.CreatedAt)
		_, err := t.exec(`INSERT INTO sessions (id, tenant, created_by, cli_session_id, alias, title, transcript_version, transcript_key, created_at, updated_at)
			VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, ?)`, in.ID, in.Tenant, in.CreatedBy, in.CLISessionID, alias, in.Title, in.TranscriptKey, now, now)
		return struct{}{}, err
	})
	return err
}

// DeleteSession makes a session disappear, durably: from now on nobody finds it
// and no run can begin in it, while its id and alias stay taken until
// ForgetSession. Repeated before that it is the same success. NotFound;
// SessionBusy while a run holds it or a fork has yet to copy it.
func (s *Store) DeleteSession(ctx context.Context, tenant, name string) (stromboli.Session, error) {
	return write(ctx, s, "delete session", func(t *tx) (stromboli.Session, error) {
		have, ok, err := t.session(`WHERE s.tenant = ? AND (s.id = ? OR s.alias = ?) ORDER BY s.id = ? DESC LIMIT 1`, tenant, name, name, name)
		switch {
		case err != nil:
			return have, err
		case !ok:
			return have, errNoSession(name)
		case have.Deleting:
			return have, nil
		case have.ActiveRun != "":
			return have, stromboli.Errorf(stromboli.SessionBusy, "session %s is in use by %s; cancel the run first", have.ID, have.ActiveRun)
		}
		return s.markDeleted(t, have)
	})
}

// markDeleted is the first step of a session's deletion; no run may hold it.
func (s *Store) markDeleted(t *tx, have stromboli.Session) (stromboli.Session, error) {
	fork, pending, err := t.session(`WHERE s.forked_from = ? AND s.fork_pending = 1 LIMIT 1`, have.ID)
	if err != nil {
		return have, err
	}
	if pending {
		return have, stromboli.Errorf(stromboli.SessionBusy, "session %s is about to be copied by %s, which forks it", have.ID, fork.ActiveRun)
	}
	have.Deleting = true
	_, err = t.exec(`UPDATE sessions SET deleted_at = ? WHERE id = ?`, max(s.now().UnixMilli(), 1), have.ID)
	return have, err
}

// DeletedSessions returns the sessions that are being deleted.
func (s *Store) DeletedSessions(ctx context.Context) ([]stromboli.Session, error) {
	rows, err := s.readDB.QueryContext(ctx, selectSession+`WHERE s.deleted_at > 0`)
	if err != nil {
		return nil, s.classify("read deleted sessions", err)
	}
	list, err := collect(rows, func(sc scanner) (stromboli.Session, error) { return scanSession(sc) })
	return list, s.classify("read deleted sessions", err)
}

// ForgetSession deletes what the store has of a session that is being deleted:
// its runs with their events, a few at a time, what their webhooks were or are to
// be told, and then its row.
func (s *Store) ForgetSession(ctx context.Context, id string) error {
	for {
		rows, err := s.readDB.QueryContext(ctx, `SELECT r.n FROM runs r JOIN sessions s ON s.id = r.session_id
			WHERE r.session_id = ? AND s.deleted_at > 0 LIMIT 200`, id)
		if err != nil {
			return s.classify("delete runs", err)
		}
		if n, err := s.deleteRuns(ctx, rows); err != nil {
			return err
		} else if n == 0 {
			break
		}
	}
	if err := s.forgetDeliveries(ctx, id); err != nil {
		return err
	}
	_, err := write(ctx, s, "forget session", func(t *tx) (struct{}, error) {
		if n, err := t.exec(`DELETE FROM sessions WHERE id = ? AND deleted_at > 0`, id); err != nil || n == 0 {
			return struct{}{}, err
		}
		_, err := t.exec(`DELETE FROM session_workspaces WHERE session = ?`, id)
		return struct{}{}, err
	})
	return err
}
