package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/tomblancdev/stromboli"
)

// FinishRun ends a run: in one transaction its outcome is stored, the events
// and after them run.finished, with the outcome as data, are appended, what its
// webhook is to be told is put into the outbox, and its session is changed and
// free, or gone where it is ephemeral or a fork that was never made. It returns
// the events that are new. Of RunFinish.Session empty strings, a zero UID
// and no Kept change nothing.
//
// Errors, and then nothing is written: NotFound; ErrFenced; Conflict where the
// run has ended or can't become the outcome's status; ErrCancelWanted where a
// cancellation was promised and the outcome isn't cancelled; ErrStale where the
// session has another transcript version than expected.
func (s *Store) FinishRun(ctx context.Context, runID string, epoch int64, f stromboli.RunFinish) ([]stromboli.Event, error) {
	return write(ctx, s, "finish run", func(t *tx) ([]stromboli.Event, error) {
		h, err := t.owned(runID, epoch)
		if err != nil {
			return nil, err
		}
		if h.cancelReason != "" && f.Outcome.Status != stromboli.Cancelled {
			return nil, fmt.Errorf("run %s: %w", runID, ErrCancelWanted)
		}
		if err := s.saveSession(t, h.session, f.Session); err != nil {
			return nil, err
		}
		return s.finish(t, h, f.Outcome, f.Events)
	})
}

// finish is the one way into a terminal status.
func (s *Store) finish(t *tx, h head, outcome stromboli.Outcome, events []stromboli.Event) ([]stromboli.Event, error) {
	if !outcome.Status.Terminal() || !h.status.CanBecome(outcome.Status) {
		return nil, stromboli.Errorf(stromboli.Conflict, "run %s is %s and can't become %q", h.id, h.status, outcome.Status)
	}
	if outcome.SessionID == "" {
		outcome.SessionID = h.session
	}
	body, err := text(outcome)
	if err != nil {
		return nil, err
	}
	events = append(slices.Clone(events), stromboli.Event{Type: stromboli.EventRunFinished, Data: json.RawMessage(body)})
	stored, err := s.appendEvents(t, &h, events)
	if err != nil {
		return nil, err
	}
	if _, err := t.exec(`INSERT INTO run_outcomes (run, outcome) VALUES (?, ?)`, h.n, body); err != nil {
		return nil, err
	}
	now := s.now().UnixMilli()
	if _, err := t.exec(`UPDATE runs SET status = ?, phase = '', finished_at = max(?, coalesce(started_at, created_at)), updated_at = ? WHERE n = ?`,
		string(outcome.Status), now, now, h.n); err != nil {
		return nil, err
	}
	if outcome.Usage != nil {
		if _, err := t.exec(`UPDATE sessions SET cost_usd = cost_usd + ? WHERE id = ?`, outcome.Usage.EstimatedCostUSD, h.session); err != nil {
			return nil, err
		}
	}
	if err := s.deliver(t, h, outcome); err != nil {
		return nil, err
	}
	return stored, t.freeSession(h.id, h.session, now)
}

func (s *Store) saveSession(t *tx, id string, save stromboli.SessionSave) error {
	if save.TranscriptKey != "" {
		if err := s.saveTranscript(t, id, save.ExpectVersion, save.TranscriptKey); err != nil {
			return err
		}
	}
	var cli *string
	var uid, gid *int
	if save.CLISessionID != "" {
		cli = &save.CLISessionID
	}
	if save.UID != 0 {
		uid, gid = &save.UID, &save.GID
	}
	if err := t.keepSandbox(id, save.Kept); err != nil {
		return err
	}
	return s.changeSession(t, id, cli, uid, gid)
}

// RequestCancel stores the wish to end a run and returns the run as it is
// afterwards. A pending run is cancelled at once and its session free. A running
// one gets the CancelReason, which beats any later result, the phase cancelling
// and its event; who executes it must be told by the caller. Repeating the wish
// until the run has ended is the same success and changes nothing. NotFound;
// Conflict where the run has ended.
func (s *Store) RequestCancel(ctx context.Context, c stromboli.CancelRequest) (stromboli.Run, error) {
	if c.Reason == "" {
		return stromboli.Run{}, errors.New("cancel run: a reason is required")
	}
	return write(ctx, s, "cancel run", func(t *tx) (stromboli.Run, error) {
		r, err := t.run(c.Tenant, c.RunID)
		if err != nil {
			return stromboli.Run{}, err
		}
		if r.Status.Terminal() {
			return stromboli.Run{}, errEnded(r.ID, r.Status)
		}
		if r.CancelReason != "" {
			return r.Run, nil
		}
		if _, err := t.exec(`UPDATE runs SET cancel_reason = ?, phase = ?, updated_at = ? WHERE n = ?`,
			string(c.Reason), string(stromboli.PhaseCancelling), s.now().UnixMilli(), r.n); err != nil {
			return stromboli.Run{}, err
		}
		h := *r.head()
		if r.Status == stromboli.Pending {
			if _, err := s.finish(t, h, neverStarted(c.Reason), nil); err != nil {
				return stromboli.Run{}, err
			}
			r, err = t.run("", r.ID)
			return r.Run, err
		}
		data, err := json.Marshal(stromboli.PhaseData{Phase: stromboli.PhaseCancelling})
		if err != nil {
			return stromboli.Run{}, err
		}
		if _, err := s.appendEvents(t, &h, []stromboli.Event{{Type: stromboli.EventPhase, Data: data}}); err != nil {
			return stromboli.Run{}, err
		}
		r, err = t.run("", r.ID)
		return r.Run, err
	})
}

// neverStarted is the outcome of a run that was cancelled while it waited.
func neverStarted(reason stromboli.Reason) stromboli.Outcome {
	msg := "the run was cancelled before it started"
	if reason == stromboli.ReasonDisconnect {
		msg = "the run was cancelled before it started because its caller went away"
	}
	return stromboli.Outcome{Status: stromboli.Cancelled, Reason: reason, Error: msg}
}
