package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Waiting is what has yet to be done.
type Waiting struct {
	// Oldest is when the run was submitted that waits longest for a slot; zero:
	// none waits.
	Oldest time.Time
	// Deliveries of webhooks that wait or are being sent, and those that were
	// given up and can be redelivered.
	Deliveries, Dead int64
}

// OldestPending is when the run was submitted that waits longest for a slot, of
// all tenants; zero: none waits.
func (s *Store) OldestPending(ctx context.Context) (time.Time, error) {
	var oldest sql.NullInt64
	err := s.readDB.QueryRowContext(ctx, `SELECT min(created_at) FROM runs WHERE status = 'pending'`).Scan(&oldest)
	if err != nil || !oldest.Valid {
		return time.Time{}, s.classify("look for the oldest pending run", err)
	}
	return fromMillis(oldest.Int64), nil
}

// Waiting counts what waits, of all tenants.
func (s *Store) Waiting(ctx context.Context) (Waiting, error) {
	var out Waiting
	var oldest sql.NullInt64
	err := s.readDB.QueryRowContext(ctx, `SELECT
		(SELECT min(created_at) FROM runs WHERE status = 'pending'),
		(SELECT count(*) FROM webhook_deliveries WHERE status = 'pending') + (SELECT count(*) FROM webhook_deliveries WHERE status = 'sending'),
		(SELECT count(*) FROM webhook_deliveries WHERE finished_at IS NOT NULL AND status = 'dead')`).
		Scan(&oldest, &out.Deliveries, &out.Dead)
	if err != nil {
		return Waiting{}, s.classify("count what waits", err)
	}
	if oldest.Valid {
		out.Oldest = fromMillis(oldest.Int64)
	}
	return out, nil
}

// EgressUsage sums the tokens of the model's answers in a run's records of
// connections. A run that is missing has none.
func (s *Store) EgressUsage(ctx context.Context, runID string) (stromboli.Usage, error) {
	var u stromboli.Usage
	err := s.readDB.QueryRowContext(ctx, `SELECT
		coalesce(sum(record ->> '$.usage.input_tokens'), 0), coalesce(sum(record ->> '$.usage.output_tokens'), 0),
		coalesce(sum(record ->> '$.usage.cache_creation_input_tokens'), 0), coalesce(sum(record ->> '$.usage.cache_read_input_tokens'), 0)
		FROM egress_records WHERE run = (SELECT n FROM runs WHERE id = ?)`, runID).
		Scan(&u.InputTokens, &u.OutputTokens, &u.CacheCreationInputTokens, &u.CacheReadInputTokens)
	u.TotalTokens = u.InputTokens + u.OutputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens
	return u, s.classify("sum a run's tokens", err)
}
