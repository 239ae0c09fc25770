package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// farAhead is longer than a delivery ever waits: one that is due later than
// that was given its time by a clock that has been set back since, and is due.
const farAhead = 24 * time.Hour

// The statements of the sender's way, each of which must cost the same however
// many deliveries wait.
const (
	dueHost = `SELECT host FROM webhook_hosts WHERE due_at <= ? AND sending < ? ORDER BY due_at LIMIT 1`
	farHost = `SELECT host FROM webhook_hosts WHERE due_at > ? AND sending < ? ORDER BY due_at LIMIT 1`

	claimDelivery = `UPDATE webhook_deliveries SET status = 'sending', attempts = attempts + 1, tries = tries + 1, updated_at = ?
		WHERE n = (SELECT n FROM webhook_deliveries WHERE status = 'pending' AND host = ? ORDER BY next_at, n LIMIT 1)
		RETURNING ` + deliveryColumns + `, url, tries`

	oweHost = `INSERT INTO webhook_hosts (host, due_at, sending) VALUES (?1,
			(SELECT min(next_at) FROM webhook_deliveries WHERE status = 'pending' AND host = ?1),
			(SELECT count(*) FROM webhook_deliveries WHERE status = 'sending' AND host = ?1))
		ON CONFLICT (host) DO UPDATE SET due_at = excluded.due_at, sending = excluded.sending`

	nextDue = `SELECT (SELECT due_at FROM webhook_hosts WHERE due_at IS NOT NULL AND sending < ?1 ORDER BY due_at LIMIT 1),
		(SELECT due_at FROM webhook_hosts WHERE due_at > ?2 AND sending < ?1 LIMIT 1)`

	releaseHost = `UPDATE webhook_deliveries SET status = 'pending', next_at = ?, updated_at = ? WHERE status = 'sending' AND host = ?`
)

// rememberWebhook stores where a new run's end is to be told.
func (t *tx) rememberWebhook(n int64, target string) error {
	if target == "" {
		return nil
	}
	_, err := t.exec(`INSERT INTO run_webhooks (run, url) VALUES (?, ?)`, n, target)
	return err
}

// deliver writes what a run's webhook is to be told, in the transaction that
// ends the run.
func (s *Store) deliver(t *tx, h head, outcome stromboli.Outcome) error {
	var tenant, target string
	err := t.scan(`SELECT r.tenant, w.url FROM run_webhooks w JOIN runs r ON r.n = w.run WHERE w.run = ?`, []any{h.n}, &tenant, &target)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	body, err := stromboli.NewWebhookPayload(h.id, outcome).Body()
	if err != nil {
		return err
	}
	now := s.now()
	host := hostOf(target)
	n, err := t.insert(`INSERT INTO webhook_deliveries (id, tenant, run_id, session_id, host, url, status, next_at, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)`,
		stromboli.NewDeliveryID(now), tenant, h.id, h.session, host, target, now.UnixMilli(), now.UnixMilli(), now.UnixMilli())
	if err != nil {
		return err
	}
	if _, err := t.exec(`INSERT INTO webhook_bodies (delivery, body) VALUES (?, ?)`, n, body); err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM run_webhooks WHERE run = ?`, h.n); err != nil {
		return err
	}
	defer s.deliveriesChanged()
	return t.owe(host)
}

// hostOf is the host:port of a URL that was checked before.
func hostOf(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), port)
}

// owe derives anew what is owed to a host. Whoever changes a delivery calls it.
func (t *tx) owe(host string) error {
	if _, err := t.exec(oweHost, host); err != nil {
		return err
	}
	_, err := t.exec(`DELETE FROM webhook_hosts WHERE host = ? AND due_at IS NULL AND sending = 0`, host)
	return err
}

func (s *Store) deliveriesChanged() {
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// DeliveryDue has a value when a delivery has become due by other than the
// passing of time. A claim that is asked for afterwards sees it: both are
// writes. It has one reader.
func (s *Store) DeliveryDue() <-chan struct{} { return s.due }

// ReleaseDeliveries makes those deliveries pending, and due, of which a server
// that is gone was making an attempt. Call it before the first claim.
func (s *Store) ReleaseDeliveries(ctx context.Context) error {
	_, err := write(ctx, s, "release deliveries", func(t *tx) (struct{}, error) {
		for {
			var host string
			err := t.scan(`SELECT host FROM webhook_hosts WHERE sending > 0 LIMIT 1`, nil, &host)
			if errors.Is(err, sql.ErrNoRows) {
				return struct{}{}, nil
			}
			if err != nil {
				return struct{}{}, err
			}
			now := s.now().UnixMilli()
			if _, err := t.exec(releaseHost, now, now, host); err != nil {
				return struct{}{}, err
			}
			if err := t.owe(host); err != nil {
				return struct{}{}, err
			}
		}
	})
	return err
}

// ClaimDeliveries makes up to most due deliveries sending, no more than perHost
// of one host at a time, and counts the attempt. The hosts that have waited
// longest come first. Their attempts end with FinishDelivery.
func (s *Store) ClaimDeliveries(ctx context.Context, most, perHost int) ([]stromboli.ClaimedDelivery, error) {
	return write(ctx, s, "claim deliveries", func(t *tx) ([]stromboli.ClaimedDelivery, error) {
		var all []stromboli.ClaimedDelivery
		for len(all) < most {
			host, ok, err := s.findDue(t, perHost)
			if err != nil || !ok {
				return all, err
			}
			d, err := s.claimOldest(t, host)
			if err != nil {
				return nil, err
			}
			all = append(all, d)
		}
		return all, nil
	})
}

// findDue finds a host that may be sent to now.
func (s *Store) findDue(t *tx, perHost int) (host string, ok bool, err error) {
	now := s.now()
	err = t.scan(dueHost, []any{now.UnixMilli(), perHost}, &host)
	if errors.Is(err, sql.ErrNoRows) {
		err = t.scan(farHost, []any{now.Add(farAhead).UnixMilli(), perHost}, &host)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	return host, err == nil, err
}

func (s *Store) claimOldest(t *tx, host string) (stromboli.ClaimedDelivery, error) {
	st, err := t.prepare(claimDelivery) //nolint:sqlclosecheck // the writer keeps it for the next call
	if err != nil {
		return stromboli.ClaimedDelivery{}, err
	}
	var c stromboli.ClaimedDelivery
	d, err := scanDelivery(st.QueryRowContext(t.ctx, s.now().UnixMilli(), host), &c.URL, &c.Tries)
	if err != nil {
		return c, err
	}
	c.Delivery = d.Delivery
	if err := t.scan(`SELECT body FROM webhook_bodies WHERE delivery = ?`, []any{d.n}, &c.Body); err != nil {
		return c, err
	}
	return c, t.owe(host)
}

// NextDelivery tells when the next delivery is due that ClaimDeliveries would
// give; ok is false where none waits.
func (s *Store) NextDelivery(ctx context.Context, perHost int) (at time.Time, ok bool, err error) {
	now := s.now()
	var next, far sql.NullInt64
	err = s.readDB.QueryRowContext(ctx, nextDue, perHost, now.Add(farAhead).UnixMilli()).Scan(&next, &far)
	switch {
	case err != nil:
		return time.Time{}, false, s.classify("read deliveries", err)
	case far.Valid:
		return now, true, nil
	}
	return fromMillis(next.Int64), next.Valid, nil
}

// FinishDelivery records what became of a delivery's attempt: the one that
// ClaimDeliveries gave that number. Conflict where that attempt is over, and
// nothing is written.
func (s *Store) FinishDelivery(ctx context.Context, id string, attempt int, r stromboli.DeliveryResult) error {
	_, err := write(ctx, s, "finish delivery", func(t *tx) (struct{}, error) {
		now := s.now().UnixMilli()
		next, finished := now, sql.NullInt64{}
		switch r.Status {
		case stromboli.DeliveryPending:
			next = s.millis(r.NextAt)
		case stromboli.DeliveryDelivered, stromboli.DeliveryDead:
			finished = sql.NullInt64{Int64: now, Valid: true}
		default:
			return struct{}{}, fmt.Errorf("a delivery's attempt can't end as %q", r.Status)
		}
		var host string
		err := t.scan(`UPDATE webhook_deliveries SET status = ?1, next_at = ?2, finished_at = ?3, updated_at = ?4, tries = max(tries - ?5, 0),
				last_status = iif(?5, last_status, ?6), last_error = iif(?5, last_error, ?7)
			WHERE id = ?8 AND attempts = ?9 AND status = 'sending' RETURNING host`,
			[]any{string(r.Status), next, finished, now, r.Untold, r.HTTPStatus, r.Error, id, attempt}, &host)
		if errors.Is(err, sql.ErrNoRows) {
			err = stromboli.Errorf(stromboli.Conflict, "attempt %d of the delivery %s is over", attempt, id)
		}
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, t.owe(host)
	})
	return err
}

// RedeliverDelivery makes a delivery due now, with all its tries before it, and
// returns it. NotFound; Conflict while an attempt is being made.
func (s *Store) RedeliverDelivery(ctx context.Context, tenant, id string) (stromboli.Delivery, error) {
	return write(ctx, s, "redeliver", func(t *tx) (stromboli.Delivery, error) {
		var host, status string
		err := t.scan(`SELECT host, status FROM webhook_deliveries WHERE id = ? AND tenant = ?`, []any{id, tenant}, &host, &status)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return stromboli.Delivery{}, stromboli.Errorf(stromboli.NotFound, "there is no delivery %q", id)
		case err != nil:
			return stromboli.Delivery{}, err
		case status == string(stromboli.DeliverySending):
			return stromboli.Delivery{}, stromboli.Errorf(stromboli.Conflict, "the delivery %s is being sent", id)
		}
		now := s.now().UnixMilli()
		st, err := t.prepare(`UPDATE webhook_deliveries SET status = 'pending', tries = 0, next_at = ?, updated_at = ?, finished_at = NULL WHERE id = ? RETURNING ` + deliveryColumns) //nolint:sqlclosecheck // kept
		if err != nil {
			return stromboli.Delivery{}, err
		}
		d, err := scanDelivery(st.QueryRowContext(t.ctx, now, now, id))
		if err != nil {
			return stromboli.Delivery{}, err
		}
		defer s.deliveriesChanged()
		return d.Delivery, t.owe(host)
	})
}
