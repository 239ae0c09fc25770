package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/tomblancdev/stromboli"
)

// repeated finds the run that an earlier call with the same key made.
func (s *Store) repeated(t *tx, in newRun) (stromboli.Run, bool, error) {
	k := in.Idempotency
	if k == nil {
		return stromboli.Run{}, false, nil
	}
	var hash, id string
	var created int64
	err := t.scan(`SELECT hash, run_id, created_at FROM idempotency_keys WHERE tenant = ? AND endpoint = ? AND key = ?`,
		[]any{in.Run.Tenant, k.Endpoint, k.Key}, &hash, &id, &created)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return stromboli.Run{}, false, nil
	case err != nil:
		return stromboli.Run{}, false, err
	case created <= s.now().Add(-s.keepKeys).UnixMilli():
		return stromboli.Run{}, false, nil
	}
	r, err := t.run(in.Run.Tenant, id)
	switch {
	case errors.Is(err, stromboli.NotFound): // the run was deleted: the key means nothing any more
		return stromboli.Run{}, false, nil
	case err != nil:
		return stromboli.Run{}, false, err
	case hash != k.Hash:
		return stromboli.Run{}, false, stromboli.Errorf(stromboli.KeyReused,
			"the Idempotency-Key %q was used before with another request body", k.Key)
	}
	return r.Run, true, nil
}

func (s *Store) rememberKey(t *tx, in newRun) error {
	k := in.Idempotency
	if k == nil {
		return nil
	}
	_, err := t.exec(`INSERT OR REPLACE INTO idempotency_keys (tenant, endpoint, key, hash, run_id, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
		in.Run.Tenant, k.Endpoint, k.Key, k.Hash, in.Run.ID, s.now().UnixMilli())
	return err
}

// DeleteExpiredIdempotency forgets keys that stand for nothing any more and reports
// how many. It takes at most 1,000 at a time.
func (s *Store) DeleteExpiredIdempotency(ctx context.Context) (int, error) {
	return write(ctx, s, "delete idempotency keys", func(t *tx) (int, error) {
		n, err := t.exec(`DELETE FROM idempotency_keys WHERE (tenant, endpoint, key) IN
			(SELECT tenant, endpoint, key FROM idempotency_keys WHERE created_at <= ? LIMIT 1000)`,
			s.now().Add(-s.keepKeys).UnixMilli())
		return int(n), err
	})
}

// deleteChunk and deleteBytes bound the events that one transaction deletes, so
// that other writes don't wait for long; one event may be larger by itself.
const (
	deleteChunk = 2000
	deleteBytes = 8 << 20
)

// deleteRuns deletes the runs whose numbers are given, one after the other.
func (s *Store) deleteRuns(ctx context.Context, numbers *sql.Rows) (int, error) {
	runs, err := collect(numbers, func(sc scanner) (n int64, err error) { return n, sc.Scan(&n) })
	if err != nil {
		return 0, s.classify("delete runs", err)
	}
	for i, n := range runs {
		for gone := false; !gone; {
			if gone, err = write(ctx, s, "delete run", func(t *tx) (bool, error) { return deleteSome(t, n) }); err != nil {
				return i, err
			}
		}
	}
	return len(runs), nil
}

// deleteEvents deletes a run's oldest events, and reports whether there may be
// more.
func deleteEvents(t *tx, n int64) (more bool, err error) {
	var upTo sql.NullInt64
	if err := t.scan(`SELECT max(seq) FROM (
			SELECT seq, coalesce(sum(bytes) OVER (ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM (
				SELECT e.seq, coalesce(octet_length(p.data), octet_length(e.data), 0) AS bytes
				FROM events e LEFT JOIN event_payloads p ON p.run = e.run AND p.seq = e.seq WHERE e.run = ? ORDER BY e.seq LIMIT ?))
		WHERE before < ?`,
		[]any{n, deleteChunk, deleteBytes}, &upTo); err != nil || !upTo.Valid {
		return false, err
	}
	for _, q := range []string{
		`DELETE FROM events WHERE run = ? AND seq <= ?`,
		`DELETE FROM event_payloads WHERE run = ? AND seq <= ?`,
	} {
		if _, err := t.exec(q, n, upTo.Int64); err != nil {
			return false, err
		}
	}
	return true, nil
}

// deleteSome reports whether the run is gone.
func deleteSome(t *tx, n int64) (bool, error) {
	if more, err := deleteEvents(t, n); err != nil || more {
		return false, err
	}
	switch more, err := t.exec(`DELETE FROM egress_records WHERE run = ? AND seq <= (SELECT max(seq) FROM
		(SELECT seq FROM egress_records WHERE run = ? ORDER BY seq LIMIT ?))`, n, n, deleteChunk); {
	case err != nil:
		return false, err
	case more > 0:
		return false, nil
	}
	for _, q := range []string{
		`DELETE FROM run_specs WHERE run = ?`,
		`DELETE FROM run_outcomes WHERE run = ?`,
		`DELETE FROM run_attestations WHERE run = ?`,
		`DELETE FROM run_metadata WHERE run = ?`,
		`DELETE FROM run_archives WHERE run = ?`,
		`DELETE FROM runs WHERE n = ?`,
	} {
		if _, err := t.exec(q, n); err != nil {
			return false, err
		}
	}
	return true, nil
}
