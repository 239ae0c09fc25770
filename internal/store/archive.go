package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Where a finished run's events are; see the migration 00017.
const (
	eventsBeingStored = 1
	eventsInBoth      = 2
	eventsInArchive   = 3
	eventsGone        = 4
)

const selectFinished = `SELECT r.n, r.id, r.session_id, r.finished_at, r.last_seq, coalesce(a.place, ''), coalesce(a.key, ''), coalesce(a.bytes, 0), r.events_at = 2 OR r.events_at = 3
	FROM runs r LEFT JOIN run_archives a ON a.run = r.n `

func scanFinished(sc scanner) (out stromboli.FinishedRun, err error) {
	var at int64
	err = sc.Scan(&out.Number, &out.ID, &out.SessionID, &at, &out.LastSeq, &out.ArchivePlace, &out.ArchiveKey, &out.ArchiveBytes, &out.Archived)
	out.FinishedAt = fromMillis(at)
	return out, err
}

func (s *Store) finished(ctx context.Context, where string, args ...any) ([]stromboli.FinishedRun, error) {
	rows, err := s.readDB.QueryContext(ctx, selectFinished+where, args...)
	if err != nil {
		return nil, s.classify("read finished runs", err)
	}
	list, err := collect(rows, scanFinished)
	return list, s.classify("read finished runs", err)
}

// RunsToArchive returns up to limit runs that finished before a time and whose
// events lie in the database still, oldest first, after another run of such
// a list; that is zero at first. Runs of sessions that are being deleted are left out.
func (s *Store) RunsToArchive(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error) {
	return s.finished(ctx, `WHERE r.finished_at IS NOT NULL AND r.events_at < 3 AND r.finished_at < ? AND (r.finished_at, r.n) > (?, ?)
		AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.id = r.session_id AND s.deleted_at > 0)
		ORDER BY r.finished_at, r.n LIMIT ?`, before.UnixMilli(), after.FinishedAt.UnixMilli(), after.Number, limit)
}

// RunsWithArchive returns up to limit runs that finished before a time and have an
// archive, or a part of one, as RunsToArchive does.
func (s *Store) RunsWithArchive(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error) {
	return s.finished(ctx, `WHERE r.finished_at IS NOT NULL AND r.events_at IN (2, 3) AND r.finished_at < ? AND (r.finished_at, r.n) > (?, ?)
		ORDER BY r.finished_at, r.n LIMIT ?`, before.UnixMilli(), after.FinishedAt.UnixMilli(), after.Number, limit)
}

// FinishedRuns returns up to limit runs that finished before a time, as
// RunsToArchive does, but those that an idempotency key stands for still.
func (s *Store) FinishedRuns(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error) {
	return s.finished(ctx, `WHERE r.finished_at IS NOT NULL AND r.finished_at < ? AND (r.finished_at, r.n) > (?, ?)
		AND NOT EXISTS (SELECT 1 FROM idempotency_keys k WHERE k.run_id = r.id AND k.created_at > ?)
		ORDER BY r.finished_at, r.n LIMIT ?`,
		before.UnixMilli(), after.FinishedAt.UnixMilli(), after.Number, s.now().Add(-s.keepKeys).UnixMilli(), limit)
}

// FinishedRun returns a run that has ended; NotFound where there is none.
func (s *Store) FinishedRun(ctx context.Context, id string) (stromboli.FinishedRun, error) {
	list, err := s.finished(ctx, `WHERE r.id = ? AND r.finished_at IS NOT NULL`, id)
	if err == nil && len(list) == 0 {
		err = errNoRun(id)
	}
	if err != nil {
		return stromboli.FinishedRun{}, err
	}
	return list[0], nil
}

// ArchivesOfSession returns the runs of a session that have an archive, or a part
// of one.
func (s *Store) ArchivesOfSession(ctx context.Context, sessionID string) ([]stromboli.FinishedRun, error) {
	return s.finished(ctx, `WHERE r.session_id = ? AND a.key IS NOT NULL`, sessionID)
}

// BeginArchive notes, durably, that the blob of a's place and key may hold events
// of its run from now on, so that whoever deletes the run deletes the blob. NotFound where there
// is no such run any more, or its session is being deleted; Conflict where it has
// not ended or its events are not in the database alone.
func (s *Store) BeginArchive(ctx context.Context, a stromboli.Archive) error {
	_, err := write(ctx, s, "begin archive", func(t *tx) (struct{}, error) {
		n, at, err := t.archivable(a.RunID)
		if err != nil {
			return struct{}{}, err
		}
		if at > eventsBeingStored {
			return struct{}{}, stromboli.Errorf(stromboli.Conflict, "the events of run %s are archived already", a.RunID)
		}
		if _, err := t.exec(`INSERT INTO run_archives (run, place, key) VALUES (?, ?, ?)
			ON CONFLICT (run) DO UPDATE SET place = excluded.place, key = excluded.key`, n, a.Place, a.Key); err != nil {
			return struct{}{}, err
		}
		_, err = t.exec(`UPDATE runs SET events_at = ? WHERE n = ?`, eventsBeingStored, n)
		return struct{}{}, err
	})
	return err
}

func (t *tx) archivable(runID string) (n, at int64, err error) {
	var status string
	err = t.scan(`SELECT r.n, r.events_at, r.status FROM runs r LEFT JOIN sessions s ON s.id = r.session_id
		WHERE r.id = ? AND coalesce(s.deleted_at, 0) = 0`, []any{runID}, &n, &at, &status)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, 0, errNoRun(runID)
	}
	if err == nil && !stromboli.Status(status).Terminal() {
		err = stromboli.Errorf(stromboli.Conflict, "run %s has not ended", runID)
	}
	return n, at, err
}

// EndArchive records that a run's archive is whole and durable: from now on its
// events are read from there where the rows are gone. NotFound and Conflict as
// for BeginArchive.
func (s *Store) EndArchive(ctx context.Context, a stromboli.Archive) error {
	frames, err := text(a.Frames)
	if err != nil {
		return err
	}
	_, err = write(ctx, s, "end archive", func(t *tx) (struct{}, error) {
		n, at, err := t.archivable(a.RunID)
		if err != nil {
			return struct{}{}, err
		}
		if at != eventsBeingStored {
			return struct{}{}, stromboli.Errorf(stromboli.Conflict, "no archive of run %s was begun", a.RunID)
		}
		if _, err := t.exec(`UPDATE run_archives SET bytes = ?, frames = ? WHERE run = ? AND key = ?`, a.Bytes, frames, n, a.Key); err != nil {
			return struct{}{}, err
		}
		_, err = t.exec(`UPDATE runs SET events_at = ? WHERE n = ?`, eventsInBoth, n)
		return struct{}{}, err
	})
	return err
}

// GetArchive returns a run's archive; NotFound where it has no whole one.
func (s *Store) GetArchive(ctx context.Context, runID string) (stromboli.Archive, error) {
	a := stromboli.Archive{RunID: runID}
	var frames string
	err := s.readDB.QueryRowContext(ctx, `SELECT a.place, a.key, a.bytes, a.frames FROM run_archives a JOIN runs r ON r.n = a.run
		WHERE r.id = ? AND r.events_at IN (2, 3)`, runID).Scan(&a.Place, &a.Key, &a.Bytes, &frames)
	if errors.Is(err, sql.ErrNoRows) {
		return a, stromboli.Errorf(stromboli.NotFound, "run %s has no archive of its events", runID)
	}
	if err != nil {
		return a, s.classify("read archive", err)
	}
	if err := json.Unmarshal([]byte(frames), &a.Frames); err != nil {
		return a, fmt.Errorf("archive of run %s: %w", runID, err)
	}
	return a, nil
}

// DeleteArchivedEvents deletes the rows of events that are in a run's archive, a
// few at a time and the oldest first. It may be cut short and repeated. Conflict
// where the archive isn't whole.
func (s *Store) DeleteArchivedEvents(ctx context.Context, runID string) error {
	for gone := false; !gone; {
		var err error
		gone, err = write(ctx, s, "delete archived events", func(t *tx) (bool, error) {
			var n, at int64
			switch err := t.scan(`SELECT n, events_at FROM runs WHERE id = ?`, []any{runID}, &n, &at); {
			case errors.Is(err, sql.ErrNoRows):
				return true, nil
			case err != nil:
				return false, err
			case at < eventsInBoth:
				return false, stromboli.Errorf(stromboli.Conflict, "the events of run %s are not archived", runID)
			}
			if more, err := deleteEvents(t, n); err != nil || more {
				return false, err
			}
			_, err := t.exec(`UPDATE runs SET events_at = max(events_at, ?) WHERE n = ?`, eventsInArchive, n)
			return true, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ForgetArchive records that a run's archive, which alone had its events, is gone,
// and the events with it. The blob must be gone before.
func (s *Store) ForgetArchive(ctx context.Context, runID string) error {
	_, err := write(ctx, s, "forget archive", func(t *tx) (struct{}, error) {
		n, err := t.exec(`UPDATE runs SET events_at = ? WHERE id = ? AND events_at = ?`, eventsGone, runID, eventsInArchive)
		if err != nil || n == 0 {
			return struct{}{}, err
		}
		_, err = t.exec(`DELETE FROM run_archives WHERE run = (SELECT n FROM runs WHERE id = ?)`, runID)
		return struct{}{}, err
	})
	return err
}

// DeleteRun deletes a run that has ended, with its events, a few at a time. Who
// calls has deleted its archive. That there is none is success; Conflict where it
// hasn't ended.
func (s *Store) DeleteRun(ctx context.Context, runID string) error {
	for gone := false; !gone; {
		var err error
		gone, err = write(ctx, s, "delete run", func(t *tx) (bool, error) {
			var n int64
			var status string
			switch err := t.scan(`SELECT n, status FROM runs WHERE id = ?`, []any{runID}, &n, &status); {
			case errors.Is(err, sql.ErrNoRows):
				return true, nil
			case err != nil:
				return false, err
			case !stromboli.Status(status).Terminal():
				return false, stromboli.Errorf(stromboli.Conflict, "run %s has not ended", runID)
			}
			return deleteSome(t, n)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
