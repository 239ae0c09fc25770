package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// appendEgress stores records of a run's present sandbox, under numbers of the
// run's own. They must follow those that are stored: ErrStale otherwise, so that
// none is stored twice or passed over.
func (t *tx) appendEgress(run int64, records []stromboli.EgressRecord) error {
	if len(records) == 0 {
		return nil
	}
	var have, last int64
	if err := t.scan(`SELECT egress_seq, (SELECT coalesce(max(seq), 0) FROM egress_records WHERE run = n) FROM runs WHERE n = ?`, []any{run}, &have, &last); err != nil {
		return err
	}
	denied := 0
	for _, r := range records {
		if r.Seq != have+1 {
			return fmt.Errorf("egress record %d after %d: %w", r.Seq, have, ErrStale)
		}
		have, last = r.Seq, last+1
		if r.Verdict == stromboli.EgressDenied {
			denied++
		}
		r.Seq = last
		body, err := text(r)
		if err != nil {
			return err
		}
		if _, err := t.exec(`INSERT INTO egress_records (run, seq, record) VALUES (?, ?, ?)`, run, last, body); err != nil {
			return err
		}
	}
	_, err := t.exec(`UPDATE runs SET egress_seq = ?, egress_denied = egress_denied + ? WHERE n = ?`, have, denied, run)
	return err
}

// EgressRecords returns up to limit records of a run's connections after a
// position, in order. A run that is missing has none.
func (s *Store) EgressRecords(ctx context.Context, runID string, after int64, limit int) ([]stromboli.EgressRecord, error) {
	rows, err := s.readDB.QueryContext(ctx, `SELECT record FROM egress_records WHERE run = (SELECT n FROM runs WHERE id = ?) AND seq > ? ORDER BY seq LIMIT ?`,
		runID, after, limit)
	if err != nil {
		return nil, s.classify("read egress records", err)
	}
	records, err := collect(rows, func(sc scanner) (r stromboli.EgressRecord, err error) {
		var body string
		if err := sc.Scan(&body); err != nil {
			return r, err
		}
		return r, json.Unmarshal([]byte(body), &r)
	})
	return records, s.classify("read egress records", err)
}

// SetNetwork changes what a run may reach and appends the event
// network.changed. NotFound; Conflict where the run has ended.
func (s *Store) SetNetwork(ctx context.Context, tenant, runID string, n stromboli.Network) (stromboli.Run, error) {
	return write(ctx, s, "change network", func(t *tx) (stromboli.Run, error) {
		r, err := t.run(tenant, runID)
		if err != nil {
			return stromboli.Run{}, err
		}
		if r.Status.Terminal() {
			return stromboli.Run{}, errEnded(r.ID, r.Status)
		}
		body, err := text(n)
		if err != nil {
			return stromboli.Run{}, err
		}
		if _, err := t.exec(`UPDATE runs SET network = ?, updated_at = ? WHERE n = ?`, body, s.now().UnixMilli(), r.n); err != nil {
			return stromboli.Run{}, err
		}
		if _, err := s.appendEvents(t, r.head(), []stromboli.Event{{Type: stromboli.EventNetworkChanged, Data: json.RawMessage(body)}}); err != nil {
			return stromboli.Run{}, err
		}
		r, err = t.run("", r.ID)
		return r.Run, err
	})
}
