package store

import (
	"context"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// LimitPages makes the database full at a number of pages.
func (s *Store) LimitPages(ctx context.Context, n int) error {
	_, err := write(ctx, s, "limit", func(t *tx) (int, error) {
		var got int
		return got, t.scan(fmt.Sprintf("PRAGMA max_page_count(%d)", n), nil, &got)
	})
	return err
}

// Plan explains the query of a filter.
func (s *Store) Plan(ctx context.Context, f stromboli.RunFilter) ([]string, error) {
	query, args, err := filter(f).query()
	if err != nil {
		return nil, err
	}
	rows, err := s.readDB.QueryContext(ctx, "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, func(sc scanner) (string, error) {
		var a, b, c int
		var detail string
		err := sc.Scan(&a, &b, &c, &detail)
		return detail, err
	})
}

// Multiply copies a run n times, each a completed one of a session of its own.
func (s *Store) Multiply(ctx context.Context, id string, n int) error {
	const numbers = `WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?) `
	_, err := write(ctx, s, "multiply", func(t *tx) (int, error) {
		if _, err := t.exec(numbers+`INSERT INTO runs (id, tenant, created_by, kind, session_id, status, phase, created_at, updated_at, started_at, finished_at, last_seq)
			SELECT 'run-' || i, tenant, created_by, CASE WHEN i % 2 THEN 'async' ELSE 'sync' END, 'session-' || i, 'completed', '',
			created_at + i, updated_at, started_at, created_at + i, 1 FROM c, runs WHERE id = ?`, n, id); err != nil {
			return 0, err
		}
		if _, err := t.exec(`INSERT INTO run_specs SELECT n, '{"prompt":"hello"}' FROM runs WHERE status = 'completed'`); err != nil {
			return 0, err
		}
		_, err := t.exec(`INSERT INTO run_outcomes SELECT n, '{"status":"completed","output":"hello"}' FROM runs WHERE status = 'completed'`)
		return 0, err
	})
	return err
}
