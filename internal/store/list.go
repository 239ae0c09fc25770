package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

const (
	defaultLimit = 1000
	// maxListBytes bounds the specs and outcomes of one page.
	maxListBytes = 32 << 20
)

// filter is a stromboli.RunFilter that becomes a query.
type filter stromboli.RunFilter

// GetRun returns a run; NotFound where it is missing or another tenant's.
func (s *Store) GetRun(ctx context.Context, tenant, id string) (stromboli.Run, error) {
	r, err := scanRun(s.readDB.QueryRowContext(ctx, selectRun+`WHERE r.id = ? AND r.tenant = ?`, id, tenant))
	if errors.Is(err, sql.ErrNoRows) {
		return stromboli.Run{}, errNoRun(id)
	}
	return r.Run, s.classify("read run", err)
}

// ActiveRuns returns the pending and running runs of all tenants in the order
// of their submission.
func (s *Store) ActiveRuns(ctx context.Context) ([]stromboli.Run, error) {
	rows, err := s.readDB.QueryContext(ctx, selectRun+`WHERE r.status IN ('pending', 'running') ORDER BY r.n`)
	if err != nil {
		return nil, s.classify("read active runs", err)
	}
	runs, err := collect(rows, func(sc scanner) (stromboli.Run, error) {
		r, err := scanRun(sc)
		return r.Run, err
	})
	return runs, s.classify("read active runs", err)
}

// ListRuns returns a page of a tenant's runs, newest first (at most 1,000, which
// is also the default of Limit), and the cursor of the next
// page, which is empty after the last. A page holds fewer runs than asked for
// where they are very large. Runs that are made while a caller pages don't
// shift the pages. An unusable cursor is an Invalid error on the field cursor.
func (s *Store) ListRuns(ctx context.Context, f stromboli.RunFilter) (runs []stromboli.Run, next string, err error) {
	if f.Tenant == "" {
		return nil, "", errors.New("list runs: a tenant is required")
	}
	if f.Limit <= 0 || f.Limit > defaultLimit {
		f.Limit = defaultLimit
	}
	query, args, err := filter(f).query()
	if err != nil {
		return nil, "", err
	}
	rows, err := s.readDB.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, "", s.classify("list runs", err)
	}
	defer func() { _ = rows.Close() }()
	var last row
	more, size := false, 0
	for rows.Next() {
		if len(runs) == f.Limit || size > maxListBytes {
			more = true
			break
		}
		if last, err = scanRun(rows); err != nil {
			return nil, "", s.classify("list runs", err)
		}
		size += last.size
		runs = append(runs, last.Run)
	}
	if err := rows.Err(); err != nil {
		return nil, "", s.classify("list runs", err)
	}
	if more {
		next = encodeCursor(last)
	}
	return runs, next, nil
}

// query finds the page's keys from an index alone, then reads those runs.
func (f filter) query() (string, []any, error) {
	b := &queryBuilder{}
	at, n, err := decodeCursor(f.Cursor)
	if err != nil {
		return "", nil, err
	}
	b.add("WITH page AS (")
	switch {
	case f.SessionID != "":
		b.add("SELECT r.created_at AS at, r.n AS n FROM runs r WHERE r.session_id = ? AND r.tenant = ?", f.SessionID, f.Tenant)
		f.rest(b, f.Metadata)
		f.page(b, at, n)
	case len(f.Metadata) > 0:
		key, others := f.firstLabel()
		b.add("SELECT m.created_at AS at, m.run AS n FROM run_metadata m JOIN runs r ON r.n = m.run WHERE m.tenant = ? AND m.key = ? AND m.value = ?",
			f.Tenant, key, f.Metadata[key])
		f.rest(b, others)
		f.page(b, at, n)
	default:
		f.ranges(b, at, n)
	}
	b.add(") "+selectRun+"JOIN page ON page.n = r.n ORDER BY page.at DESC, page.n DESC LIMIT ?", f.Limit+1)
	return b.text.String(), b.args, nil
}

// ranges joins one ordered index range per status, or per kind and status: each
// gives at most a page, so the cost does not depend on the number of runs.
func (f filter) ranges(b *queryBuilder, at, n int64) {
	statuses := f.Statuses
	if len(statuses) == 0 {
		statuses = []stromboli.Status{
			stromboli.Pending, stromboli.Running, stromboli.Completed,
			stromboli.Failed, stromboli.Crashed, stromboli.Cancelled,
		}
	}
	kinds := f.Kinds
	if len(kinds) == 0 {
		kinds = []stromboli.Kind{""}
	}
	first := true
	for _, status := range unique(statuses) {
		for _, kind := range unique(kinds) {
			if !first {
				b.add(" UNION ALL ")
			}
			first = false
			b.add("SELECT * FROM (SELECT created_at AS at, n FROM runs WHERE tenant = ? AND status = ?", f.Tenant, string(status))
			if kind != "" {
				b.add(" AND kind = ?", string(kind))
			}
			f.page(b, at, n)
			b.add(")")
		}
	}
}

// page ends a range: since, the cursor, order and limit.
func (f filter) page(b *queryBuilder, at, n int64) {
	if !f.Since.IsZero() {
		b.add(" AND at >= ?", f.Since.UnixMilli())
	}
	if f.Cursor != "" {
		b.add(" AND (at, n) < (?, ?)", at, n)
	}
	b.add(" ORDER BY at DESC, n DESC LIMIT ?", f.Limit+1)
}

func (f filter) rest(b *queryBuilder, labels map[string]string) {
	in(b, "r.kind", unique(f.Kinds))
	in(b, "r.status", unique(f.Statuses))
	for k, v := range labels {
		b.add(" AND EXISTS (SELECT 1 FROM run_metadata x WHERE x.tenant = r.tenant AND x.key = ? AND x.value = ? AND x.created_at = r.created_at AND x.run = r.n)", k, v)
	}
}

func (f filter) firstLabel() (string, map[string]string) {
	var keys []string
	others := map[string]string{}
	for k, v := range f.Metadata {
		keys = append(keys, k)
		others[k] = v
	}
	slices.Sort(keys)
	delete(others, keys[0])
	return keys[0], others
}

type queryBuilder struct {
	text strings.Builder
	args []any
}

func (b *queryBuilder) add(text string, args ...any) {
	b.text.WriteString(text)
	b.args = append(b.args, args...)
}

func in[T ~string](b *queryBuilder, column string, values []T) {
	if len(values) == 0 {
		return
	}
	b.add(" AND " + column + " IN (?" + strings.Repeat(", ?", len(values)-1) + ")")
	for _, v := range values {
		b.args = append(b.args, string(v))
	}
}

// unique is a sorted copy: a value given twice must not give runs twice.
func unique[T ~string](values []T) []T {
	out := slices.Clone(values)
	slices.Sort(out)
	return slices.Compact(out)
}

func encodeCursor(r row) string {
	return strconv.FormatInt(r.CreatedAt.UnixMilli(), 36) + "." + strconv.FormatInt(r.n, 36)
}

func decodeCursor(c string) (at, n int64, err error) {
	if c == "" {
		return 0, 0, nil
	}
	left, right, ok := strings.Cut(c, ".")
	at, err1 := strconv.ParseInt(left, 36, 64)
	n, err2 := strconv.ParseInt(right, 36, 64)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, stromboli.FieldError("cursor", "is not a cursor of this list").
			WithCause(fmt.Errorf("cursor %q", c))
	}
	return at, n, nil
}
