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

// SetMaxGrants changes how many logins an API token may have.
func (s *Store) SetMaxGrants(n int64) { s.maxGrants = n }
