package store

import (
	"context"
	"time"
)

// Expired counts what DeleteExpiredIdempotency and DeleteExpiredGrants would
// delete by now.
func (s *Store) Expired(ctx context.Context) (keys, logins int64, err error) {
	now := s.now()
	err = s.readDB.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM idempotency_keys WHERE created_at <= ?),
		(SELECT count(*) FROM auth_grants WHERE expires_at < ?)`, now.Add(-s.keepKeys).UnixMilli(), now.UnixMilli()).Scan(&keys, &logins)
	return keys, logins, s.classify("count what has expired", err)
}

// FinishedDeliveries counts what DeleteFinishedDeliveries would delete.
func (s *Store) FinishedDeliveries(ctx context.Context, before time.Time) (n int64, err error) {
	err = s.readDB.QueryRowContext(ctx, `SELECT count(*) FROM webhook_deliveries WHERE finished_at IS NOT NULL AND finished_at < ?`,
		before.UnixMilli()).Scan(&n)
	return n, s.classify("count deliveries", err)
}

// ArchiveBytes is what all archives take together, wherever they are.
func (s *Store) ArchiveBytes(ctx context.Context) (n int64, err error) {
	err = s.readDB.QueryRowContext(ctx, `SELECT coalesce(sum(bytes), 0) FROM run_archives`).Scan(&n)
	return n, s.classify("measure archives", err)
}
