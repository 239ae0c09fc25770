package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
)

// deliveryColumns are a delivery's, in the order of scanDelivery.
const deliveryColumns = `n, id, tenant, run_id, host, status, attempts, next_at, last_status, last_error, created_at, updated_at, coalesce(finished_at, 0)`

// deliveryRow is a delivery and its key.
type deliveryRow struct {
	stromboli.Delivery
	n int64
}

func scanDelivery(sc scanner, more ...any) (deliveryRow, error) {
	var d deliveryRow
	var status string
	var next, created, updated, finished int64
	err := sc.Scan(append([]any{
		&d.n, &d.ID, &d.Tenant, &d.RunID, &d.Host, &status, &d.Attempts, &next, &d.LastStatus, &d.LastError, &created, &updated, &finished,
	}, more...)...)
	d.Status = stromboli.DeliveryStatus(status)
	d.CreatedAt, d.UpdatedAt = fromMillis(created), fromMillis(updated)
	if d.Status == stromboli.DeliveryPending {
		d.NextAt = fromMillis(next)
	}
	if finished > 0 {
		d.FinishedAt = fromMillis(finished)
	}
	return d, err
}

// ListDeliveries returns a page of a tenant's deliveries, newest first (at most
// 1,000, which is also the default of Limit), and the cursor of the next page,
// empty after the last. An unusable cursor is an Invalid error on the field
// cursor.
func (s *Store) ListDeliveries(ctx context.Context, f stromboli.DeliveryFilter) (list []stromboli.Delivery, next string, err error) {
	if f.Tenant == "" {
		return nil, "", errors.New("list deliveries: a tenant is required")
	}
	if f.Limit <= 0 || f.Limit > defaultLimit {
		f.Limit = defaultLimit
	}
	before := int64(1<<63 - 1)
	if f.Cursor != "" {
		if before, err = strconv.ParseInt(f.Cursor, 36, 64); err != nil || before < 0 {
			return nil, "", stromboli.FieldError("cursor", "is not a cursor of this list")
		}
	}
	b := &queryBuilder{}
	deliveryQuery(b, f, before)
	rows, err := s.readDB.QueryContext(ctx, b.text.String(), b.args...)
	if err != nil {
		return nil, "", s.classify("list deliveries", err)
	}
	page, err := collect(rows, func(sc scanner) (deliveryRow, error) { return scanDelivery(sc) })
	if err != nil {
		return nil, "", s.classify("list deliveries", err)
	}
	if len(page) > f.Limit {
		page = page[:f.Limit]
		next = strconv.FormatInt(page[f.Limit-1].n, 36)
	}
	for _, d := range page {
		list = append(list, d.Delivery)
	}
	return list, next, nil
}

// deliveryQuery reads one ordered index range per status, so that the cost does
// not depend on the number of deliveries.
func deliveryQuery(b *queryBuilder, f stromboli.DeliveryFilter, before int64) {
	const head = "SELECT " + deliveryColumns + " FROM webhook_deliveries WHERE "
	switch {
	case f.RunID != "": // a run has one, and had it not, a few
		b.add(head+"run_id = ? AND tenant = ? AND n < ?", f.RunID, f.Tenant, before)
		in(b, "status", unique(f.Statuses))
	case len(f.Statuses) > 0:
		for i, status := range unique(f.Statuses) {
			if i > 0 {
				b.add(" UNION ALL ")
			}
			b.add("SELECT * FROM ("+head+"tenant = ? AND status = ? AND n < ? ORDER BY n DESC LIMIT ?)", f.Tenant, string(status), before, f.Limit+1)
		}
	default:
		b.add(head+"tenant = ? AND n < ?", f.Tenant, before)
	}
	b.add(" ORDER BY n DESC LIMIT ?", f.Limit+1)
}

const oldDeliveries = `SELECT n FROM webhook_deliveries WHERE finished_at IS NOT NULL AND finished_at < ? ORDER BY finished_at, n LIMIT ?`

// DeleteFinishedDeliveries deletes up to limit deliveries that arrived or were
// given up before the given time, oldest first, and reports how many.
func (s *Store) DeleteFinishedDeliveries(ctx context.Context, before time.Time, limit int) (int, error) {
	return write(ctx, s, "delete deliveries", func(t *tx) (int, error) {
		if _, err := t.exec(`DELETE FROM webhook_bodies WHERE delivery IN (`+oldDeliveries+`)`, before.UnixMilli(), limit); err != nil {
			return 0, err
		}
		n, err := t.exec(`DELETE FROM webhook_deliveries WHERE n IN (`+oldDeliveries+`)`, before.UnixMilli(), limit)
		return int(n), err
	})
}

// forgetChunk bounds the deliveries that one transaction deletes: each may hold
// a body of a megabyte.
const forgetChunk = 50

// forgetDeliveries deletes a session's deliveries, whatever their status: they
// hold what its runs said.
func (s *Store) forgetDeliveries(ctx context.Context, session string) error {
	for more := true; more; {
		var err error
		more, err = write(ctx, s, "delete deliveries", func(t *tx) (bool, error) {
			var host string
			err := t.scan(`SELECT host FROM webhook_deliveries WHERE session_id = ? LIMIT 1`, []any{session}, &host)
			if errors.Is(err, sql.ErrNoRows) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			const some = `(SELECT n FROM webhook_deliveries WHERE session_id = ? AND host = ? ORDER BY n LIMIT ?)`
			if _, err := t.exec(`DELETE FROM webhook_bodies WHERE delivery IN `+some, session, host, forgetChunk); err != nil {
				return false, err
			}
			if _, err := t.exec(`DELETE FROM webhook_deliveries WHERE n IN `+some, session, host, forgetChunk); err != nil {
				return false, err
			}
			return true, t.owe(host)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
