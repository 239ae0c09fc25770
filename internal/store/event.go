package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

const (
	// maxInRow is the largest payload that lies in the events table; larger
	// ones are in event_payloads, so that scans of events stay cheap.
	maxInRow = 8 << 10
	// maxRead bounds the payload bytes of one answer of Events.
	maxRead = 8 << 20
)

// AppendEvents adds events to a run and returns those that are new, with their
// sequences. Events that a line gave rise to (Line > 0) must come all in one
// call, lines in increasing order: a line that is not above the run's LastLine
// is known to be stored and is skipped whole. So repeating a call is harmless.
//
// The Data slices are kept and handed to followers: the caller must not change
// them afterwards. Errors: NotFound, ErrFenced, Conflict (the run has ended).
func (s *Store) AppendEvents(ctx context.Context, runID string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error) {
	return write(ctx, s, "append events", func(t *tx) ([]stromboli.Event, error) {
		h, err := t.owned(runID, epoch)
		if err != nil {
			return nil, err
		}
		return s.appendEvents(t, &h, events)
	})
}

// appendEvents also moves h to the new positions.
func (s *Store) appendEvents(t *tx, h *head, events []stromboli.Event) ([]stromboli.Event, error) {
	stored := make([]stromboli.Event, 0, len(events))
	known, now := h.lastLine, s.now().UnixMilli()
	for _, ev := range events {
		if ev.Line > 0 {
			if ev.Line <= known {
				continue
			}
			if ev.Line < h.lastLine {
				return nil, fmt.Errorf("run %s: line %d comes after line %d", h.id, ev.Line, h.lastLine)
			}
			h.lastLine = ev.Line
		}
		h.lastSeq++
		ev.Seq, ev.RunID = h.lastSeq, h.id
		at := now
		if !ev.At.IsZero() {
			at = ev.At.UnixMilli()
		}
		ev.At = fromMillis(at)
		if len(ev.Data) == 0 {
			ev.Data = json.RawMessage(`{}`)
		}
		if err := insertEvent(t, h.n, ev); err != nil {
			return nil, err
		}
		stored = append(stored, ev)
	}
	if len(stored) == 0 {
		return nil, nil
	}
	if _, err := t.exec(`UPDATE runs SET last_seq = ?, last_line = max(last_line, ?), updated_at = max(updated_at, ?) WHERE n = ?`,
		h.lastSeq, h.lastLine, now, h.n); err != nil {
		return nil, err
	}
	t.events = append(t.events, committed{h.id, stored})
	return stored, nil
}

func insertEvent(t *tx, run int64, ev stromboli.Event) error {
	inRow := []byte(ev.Data)
	if len(inRow) > maxInRow {
		inRow = nil
		if _, err := t.exec(`INSERT INTO event_payloads (run, seq, data) VALUES (?, ?, ?)`, run, ev.Seq, []byte(ev.Data)); err != nil {
			return err
		}
	}
	_, err := t.exec(`INSERT INTO events (run, seq, type, at, line, idx, data) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		run, ev.Seq, string(ev.Type), ev.At.UnixMilli(), ev.Line, ev.Index, inRow)
	return err
}

// Events returns a run's events after a position, in order: at most limit, and
// fewer, but at least one, where their data is above 8 MiB. Only an empty
// answer means that there are no more; compare with Run.LastSeq. An unknown run
// has none.
func (s *Store) Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error) {
	rows, err := s.readDB.QueryContext(ctx, `SELECT e.seq, e.type, e.at, e.line, e.idx, coalesce(e.data, p.data)
		FROM events e LEFT JOIN event_payloads p ON p.run = e.run AND p.seq = e.seq
		WHERE e.run = (SELECT n FROM runs WHERE id = ?) AND e.seq > ? ORDER BY e.seq LIMIT ?`, runID, after, limit)
	if err != nil {
		return nil, s.classify("read events", err)
	}
	defer func() { _ = rows.Close() }()
	var out []stromboli.Event
	for size := 0; size < maxRead && rows.Next(); {
		ev := stromboli.Event{RunID: runID}
		var at int64
		var kind string
		var data []byte
		if err := rows.Scan(&ev.Seq, &kind, &at, &ev.Line, &ev.Index, &data); err != nil {
			return nil, s.classify("read events", err)
		}
		ev.Type, ev.At, ev.Data = stromboli.EventType(kind), fromMillis(at), data
		size += len(data)
		out = append(out, ev)
	}
	if err := rows.Err(); err != nil {
		return nil, s.classify("read events", err)
	}
	return out, nil
}

// EventData returns the data of one event, however large; NotFound where there
// is no such event.
func (s *Store) EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error) {
	var data []byte
	err := s.readDB.QueryRowContext(ctx, `SELECT coalesce(e.data, p.data)
		FROM events e LEFT JOIN event_payloads p ON p.run = e.run AND p.seq = e.seq
		WHERE e.run = (SELECT n FROM runs WHERE id = ?) AND e.seq = ?`, runID, seq).Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, stromboli.Errorf(stromboli.NotFound, "run %s has no event %d", runID, seq)
	}
	if err != nil {
		return nil, s.classify("read event", err)
	}
	return data, nil
}

// LastEvent returns the sequence of a run's newest event and whether the run
// has ended, which its last event tells; NotFound where there is no such run.
func (s *Store) LastEvent(ctx context.Context, runID string) (seq int64, ended bool, err error) {
	var status string
	err = s.readDB.QueryRowContext(ctx, `SELECT last_seq, status FROM runs WHERE id = ?`, runID).Scan(&seq, &status)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, errNoRun(runID)
	}
	if err != nil {
		return 0, false, s.classify("read run", err)
	}
	return seq, stromboli.Status(status).Terminal(), nil
}

// collect reads all rows and closes them.
func collect[T any](rows *sql.Rows, scan func(scanner) (T, error)) ([]T, error) {
	defer func() { _ = rows.Close() }()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
