package store

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

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
	return s.explain(ctx, query, args...)
}

// DeliveryPlans explains the statements about deliveries, by their text.
func (s *Store) DeliveryPlans(ctx context.Context) (map[string][]string, error) {
	plans := map[string][]string{}
	queries := map[string]int{dueHost: 2, farHost: 2, claimDelivery: 2, oweHost: 1, nextDue: 2, releaseHost: 3, oldDeliveries: 2}
	for query, n := range queries {
		plan, err := s.explain(ctx, query, make([]any, n)...)
		if err != nil {
			return nil, err
		}
		plans[query] = plan
	}
	for _, f := range []stromboli.DeliveryFilter{{}, {RunID: "r"}, {Statuses: []stromboli.DeliveryStatus{"a"}}, {Statuses: []stromboli.DeliveryStatus{"a", "b"}}} {
		b := &queryBuilder{}
		deliveryQuery(b, f, 1)
		plan, err := s.explain(ctx, b.text.String(), b.args...)
		if err != nil {
			return nil, err
		}
		plans[b.text.String()] = plan
	}
	return plans, nil
}

func (s *Store) explain(ctx context.Context, query string, args ...any) ([]string, error) {
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

// SetMaxGrants changes how many logins an API token may have.
func (s *Store) SetMaxGrants(n int64) { s.maxGrants = n }

// OweMany puts n deliveries into the outbox, due now, to so many hosts.
func (s *Store) OweMany(ctx context.Context, n, hosts int) error {
	_, err := write(ctx, s, "owe many", func(t *tx) (int, error) {
		now := s.now().UnixMilli()
		if _, err := t.exec(`WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?)
			INSERT INTO webhook_deliveries (id, tenant, run_id, host, url, status, next_at, created_at, updated_at)
			SELECT 'msg-' || i, 'default', 'run-' || i, 'h' || (i % ?) || ':80', 'http://h/', 'pending', ?, ?, ? FROM c`, n, hosts, now, now, now); err != nil {
			return 0, err
		}
		if _, err := t.exec(`INSERT INTO webhook_bodies SELECT n, zeroblob(1000) FROM webhook_deliveries`); err != nil {
			return 0, err
		}
		_, err := t.exec(`INSERT INTO webhook_hosts SELECT host, min(next_at), 0 FROM webhook_deliveries GROUP BY host`)
		return 0, err
	})
	return err
}

// MakeOld makes a database of an old schema, with the rows that statements
// insert, and counts them by table.
func MakeOld(ctx context.Context, path string, schema int64, statements string) (map[string]int, error) {
	if err := touch(path); err != nil {
		return nil, err
	}
	db, err := openFile(path, "rw", "journal_mode(WAL)")
	if err != nil {
		return nil, err
	}
	defer func() { _ = db.Close() }()
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return nil, err
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithVerbose(false))
	if err != nil {
		return nil, err
	}
	if _, err := provider.UpTo(ctx, schema); err != nil {
		return nil, err
	}
	if _, err := db.ExecContext(ctx, statements); err != nil {
		return nil, err
	}
	return tables(ctx, db)
}

// Tables counts the rows by table.
func (s *Store) Tables(ctx context.Context) (map[string]int, error) { return tables(ctx, s.readDB) }

func tables(ctx context.Context, db *sql.DB) (map[string]int, error) {
	rows, err := db.QueryContext(ctx, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'goose_db_version'`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[string]int{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out[name] = 0
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for name := range out {
		var n int
		if err := db.QueryRowContext(ctx, `SELECT count(*) FROM "`+name+`"`).Scan(&n); err != nil {
			return nil, err
		}
		out[name] = n
	}
	return out, nil
}
