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
