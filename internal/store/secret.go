package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/tomblancdev/stromboli"
)

const selectSecret = `SELECT tenant, name, id, created_by, created_at, key_id, box FROM secrets ` //nolint:gosec // names of columns

func scanSecret(sc scanner) (s stromboli.SealedSecret, err error) {
	var created int64
	err = sc.Scan(&s.Tenant, &s.Name, &s.ID, &s.CreatedBy, &created, &s.KeyID, &s.Box)
	s.CreatedAt = fromMillis(created)
	return s, err
}

func errNoSecret(name string) error {
	return stromboli.Errorf(stromboli.NotFound, "there is no secret %q", name)
}

// CreateSecret stores a sealed secret; Conflict where the tenant has one of the
// name.
func (s *Store) CreateSecret(ctx context.Context, in stromboli.SealedSecret) error {
	_, err := write(ctx, s, "create secret", func(t *tx) (struct{}, error) {
		var taken int
		if err := t.scan(`SELECT count(*) FROM secrets WHERE tenant = ? AND name = ?`, []any{in.Tenant, in.Name}, &taken); err != nil {
			return struct{}{}, err
		}
		if taken > 0 {
			return struct{}{}, stromboli.Errorf(stromboli.Conflict, "the secret %s exists already; delete it first", in.Name)
		}
		_, err := t.exec(`INSERT INTO secrets (tenant, name, id, created_by, created_at, key_id, box) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			in.Tenant, in.Name, in.ID, in.CreatedBy, s.millis(in.CreatedAt), in.KeyID, in.Box)
		return struct{}{}, err
	})
	return err
}

// GetSecret returns a sealed secret; NotFound.
func (s *Store) GetSecret(ctx context.Context, tenant, name string) (stromboli.SealedSecret, error) {
	sealed, err := scanSecret(s.readDB.QueryRowContext(ctx, selectSecret+`WHERE tenant = ? AND name = ?`, tenant, name))
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.SealedSecret{}, errNoSecret(name)
	}
	return sealed, s.classify("read secret", err)
}

// ListSecrets returns a tenant's secrets by name.
func (s *Store) ListSecrets(ctx context.Context, tenant string) ([]stromboli.Secret, error) {
	rows, err := s.readDB.QueryContext(ctx, `SELECT tenant, name, id, created_by, created_at, key_id, x'' FROM secrets WHERE tenant = ? ORDER BY name`, tenant)
	if err != nil {
		return nil, s.classify("list secrets", err)
	}
	list, err := collect(rows, func(sc scanner) (stromboli.Secret, error) {
		sealed, err := scanSecret(sc)
		return sealed.Secret, err
	})
	return list, s.classify("list secrets", err)
}

// DeleteSecret removes a secret; NotFound.
func (s *Store) DeleteSecret(ctx context.Context, tenant, name string) error {
	_, err := write(ctx, s, "delete secret", func(t *tx) (struct{}, error) {
		n, err := t.exec(`DELETE FROM secrets WHERE tenant = ? AND name = ?`, tenant, name)
		if err == nil && n == 0 {
			err = errNoSecret(name)
		}
		return struct{}{}, err
	})
	return err
}

// OtherlySealed returns up to limit secrets of all tenants that another key
// than this one sealed.
func (s *Store) OtherlySealed(ctx context.Context, keyID string, limit int) ([]stromboli.SealedSecret, error) {
	rows, err := s.readDB.QueryContext(ctx, selectSecret+`WHERE key_id <> ? ORDER BY tenant, name LIMIT ?`, keyID, limit)
	if err != nil {
		return nil, s.classify("read secrets", err)
	}
	list, err := collect(rows, scanSecret)
	return list, s.classify("read secrets", err)
}

// ReplaceBox changes how a secret is sealed, if it still is the one that in
// says; else nothing changes.
func (s *Store) ReplaceBox(ctx context.Context, in stromboli.SealedSecret, keyID string, box []byte) error {
	_, err := write(ctx, s, "seal secret anew", func(t *tx) (struct{}, error) {
		_, err := t.exec(`UPDATE secrets SET key_id = ?, box = ? WHERE tenant = ? AND name = ? AND id = ? AND key_id = ?`, keyID, box, in.Tenant, in.Name, in.ID, in.KeyID)
		return struct{}{}, err
	})
	return err
}
