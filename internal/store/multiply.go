package store

import "context"

// Multiply copies a run n times, each a completed one of a session of its own:
// run-0…010, run-0…020 and so on. It is for measurements.
func (s *Store) Multiply(ctx context.Context, id string, n int) error {
	const numbers = `WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?) `
	_, err := write(ctx, s, "multiply", func(t *tx) (int, error) {
		if _, err := t.exec(numbers+`INSERT INTO runs (id, tenant, created_by, kind, session_id, status, phase, created_at, updated_at, started_at, finished_at, last_seq)
			SELECT printf('run-%025d0', i), tenant, created_by, CASE WHEN i % 2 THEN 'async' ELSE 'sync' END, 'session-' || i, 'completed', '',
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
