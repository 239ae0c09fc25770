package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/tomblancdev/stromboli"
)

// maxGrants bounds the logins of one API token: one more ends the oldest.
const maxGrants int64 = 10_000

// CreateGrant stores a login, durable on return. Of an API token that has
// 10,000 the oldest is forgotten, and with it whatever bears its id.
func (s *Store) CreateGrant(ctx context.Context, g stromboli.Grant) error {
	_, err := write(ctx, s, "create grant", func(t *tx) (struct{}, error) {
		var n int64
		if err := t.scan(`SELECT coalesce(max(n), 0) + 1 FROM auth_grants WHERE minted_by = ?`, []any{g.MintedBy}, &n); err != nil {
			return struct{}{}, err
		}
		if _, err := t.exec(`DELETE FROM auth_grants WHERE minted_by = ? AND n BETWEEN 1 AND ?`, g.MintedBy, n-s.maxGrants); err != nil {
			return struct{}{}, err
		}
		_, err := t.exec(`INSERT INTO auth_grants (id, minted_by, n, refresh, revoked, created_at, expires_at) VALUES (?, ?, ?, ?, 0, ?, ?)`,
			g.ID, g.MintedBy, n, g.Refresh, s.millis(g.Created), s.millis(g.Expires))
		return struct{}{}, err
	})
	return err
}

// GetGrant returns a login; NotFound.
func (s *Store) GetGrant(ctx context.Context, id string) (stromboli.Grant, error) {
	g := stromboli.Grant{ID: id}
	var created, expires int64
	err := s.readDB.QueryRowContext(ctx, `SELECT minted_by, refresh, revoked, created_at, expires_at FROM auth_grants WHERE id = ?`, id).
		Scan(&g.MintedBy, &g.Refresh, &g.Revoked, &created, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.Grant{}, stromboli.Errorf(stromboli.NotFound, "there is no such login")
	}
	g.Created, g.Expires = fromMillis(created), fromMillis(expires)
	return g, s.classify("read grant", err)
}

// RotateGrant replaces the refresh token that may be used next, if it is the
// one that from names, and reports whether it was. If it wasn't, somebody uses
// a token for the second time: the login is revoked. Both are durable on
// return, and of two that ask at once one is told true.
func (s *Store) RotateGrant(ctx context.Context, id, from, to string, expires time.Time) (bool, error) {
	return write(ctx, s, "rotate grant", func(t *tx) (bool, error) {
		n, err := t.exec(`UPDATE auth_grants SET refresh = ?, expires_at = max(expires_at, ?) WHERE id = ? AND refresh = ? AND NOT revoked`,
			to, s.millis(expires), id, from)
		if err != nil || n > 0 {
			return n > 0, err
		}
		_, err = t.exec(`UPDATE auth_grants SET revoked = 1 WHERE id = ?`, id)
		return false, err
	})
}

// RevokeGrant makes a login, or a single token that another program made, void;
// durable on return. It is remembered until expires at least. Asked again it
// succeeds again.
func (s *Store) RevokeGrant(ctx context.Context, id string, expires time.Time) error {
	_, err := write(ctx, s, "revoke grant", func(t *tx) (struct{}, error) {
		_, err := t.exec(`INSERT INTO auth_grants (id, minted_by, n, refresh, revoked, created_at, expires_at) VALUES (?, '', 0, '', 1, ?, ?)
			ON CONFLICT (id) DO UPDATE SET revoked = 1, expires_at = max(expires_at, excluded.expires_at)`,
			id, s.millis(s.now()), s.millis(expires))
		return struct{}{}, err
	})
	return err
}

// DeleteExpiredGrants forgets logins of which no token is valid any more, and
// reports how many; at most 1,000 at a time.
func (s *Store) DeleteExpiredGrants(ctx context.Context) (int, error) {
	return write(ctx, s, "delete grants", func(t *tx) (int, error) {
		n, err := t.exec(`DELETE FROM auth_grants WHERE id IN (SELECT id FROM auth_grants WHERE expires_at < ? LIMIT 1000)`, s.now().UnixMilli())
		return int(n), err
	})
}
