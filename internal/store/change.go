package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// ClaimPending makes the oldest pending run of all tenants the owner's: it is
// running with a new epoch, in the phase creating. ok is false where nothing waits.
func (s *Store) ClaimPending(ctx context.Context, owner string) (run stromboli.Run, ok bool, err error) {
	if owner == "" {
		return stromboli.Run{}, false, errors.New("claim run: an owner is required")
	}
	if err := s.Damage(); err != nil {
		return stromboli.Run{}, false, err
	}
	run, err = write(ctx, s, "claim run", func(t *tx) (stromboli.Run, error) {
		var id string
		err := t.scan(`SELECT id FROM runs WHERE status IN ('pending', 'running') AND status = 'pending' ORDER BY n LIMIT 1`, nil, &id)
		if errors.Is(err, sql.ErrNoRows) {
			return stromboli.Run{}, nil
		}
		if err != nil {
			return stromboli.Run{}, err
		}
		now := s.now().UnixMilli()
		phase := stromboli.PhaseCreating
		if _, err := t.exec(`UPDATE runs SET status = 'running', phase = ?, owner = ?, epoch = epoch + 1, started_at = max(?, created_at), updated_at = ? WHERE id = ?`,
			string(phase), owner, now, now, id); err != nil {
			return stromboli.Run{}, err
		}
		r, err := t.run("", id)
		if err != nil {
			return stromboli.Run{}, err
		}
		data, err := json.Marshal(stromboli.PhaseData{Phase: phase})
		if err != nil {
			return stromboli.Run{}, err
		}
		if _, err := s.appendEvents(t, r.head(), []stromboli.Event{{Type: stromboli.EventPhase, Data: data}}); err != nil {
			return stromboli.Run{}, err
		}
		r, err = t.run("", id)
		return r.Run, err
	})
	return run, err == nil && run.ID != "", err
}

// Takeover makes a running run the owner's, under the new epoch that it returns:
// from now on nobody else can change it. NotFound; Conflict where the run is not running.
func (s *Store) Takeover(ctx context.Context, runID, owner string) (epoch int64, err error) {
	if owner == "" {
		return 0, errors.New("take over run: an owner is required")
	}
	return write(ctx, s, "take over run", func(t *tx) (int64, error) {
		r, err := t.run("", runID)
		if err != nil {
			return 0, err
		}
		if r.Status != stromboli.Running {
			return 0, stromboli.Errorf(stromboli.Conflict, "run %s is not running (%s)", runID, r.Status)
		}
		if _, err := t.exec(`UPDATE runs SET owner = ?, epoch = epoch + 1, updated_at = ? WHERE n = ?`,
			owner, s.now().UnixMilli(), r.n); err != nil {
			return 0, err
		}
		return r.Epoch + 1, nil
	})
}

// UpdateRun changes what is set, appends the events in the same transaction, as
// by AppendEvents, and returns those that are new. Once a cancellation was requested the
// phase is cancelling, then finishing: another Phase, and the phase events of
// that update, are left out. Errors: NotFound, ErrFenced, ErrStale (records
// that don't follow those that are stored), Conflict (the run has ended).
func (s *Store) UpdateRun(ctx context.Context, runID string, epoch int64, u stromboli.RunUpdate) ([]stromboli.Event, error) {
	return write(ctx, s, "update run", func(t *tx) ([]stromboli.Event, error) {
		h, err := t.owned(runID, epoch)
		if err != nil {
			return nil, err
		}
		phase, events := u.Phase, u.Events
		if h.cancelReason != "" && phase != nil && *phase != stromboli.PhaseCancelling && *phase != stromboli.PhaseFinishing {
			phase, events = nil, withoutPhases(events)
		}
		if err := s.changeRow(t, h, u, phase); err != nil {
			return nil, err
		}
		if u.Forked != nil {
			if _, err := t.exec(`UPDATE sessions SET fork_pending = 0, fork_of = ?, updated_at = ? WHERE id = ? AND fork_pending = 1`,
				*u.Forked, s.now().UnixMilli(), h.session); err != nil {
				return nil, err
			}
		}
		if err := t.appendEgress(h.n, u.Egress); err != nil {
			return nil, err
		}
		if err := t.attest(h.n, u.Attestation); err != nil {
			return nil, err
		}
		return s.appendEvents(t, &h, events)
	})
}

func withoutPhases(events []stromboli.Event) []stromboli.Event {
	var out []stromboli.Event
	for _, ev := range events {
		if ev.Type != stromboli.EventPhase {
			out = append(out, ev)
		}
	}
	return out
}

// changeRow sets the run's own columns; NULL leaves one as it is.
func (s *Store) changeRow(t *tx, h head, u stromboli.RunUpdate, phase *stromboli.Phase) error {
	var warnings *string
	if len(u.Warnings) > 0 {
		r, err := t.run("", h.id)
		if err != nil {
			return err
		}
		w, err := warningsText(append(r.Warnings, u.Warnings...))
		if err != nil {
			return err
		}
		warnings = &w
	}
	_, err := t.exec(`UPDATE runs SET phase = coalesce(?1, phase), egress_seq = iif(?2 IS NULL OR ?2 = sandbox_id, egress_seq, 0), sandbox_id = coalesce(?2, sandbox_id),
		agent_started = coalesce(?3, agent_started), image_digest = coalesce(?4, image_digest),
		warnings = coalesce(?5, warnings), updated_at = ?6 WHERE n = ?7`,
		(*string)(phase), u.SandboxID, u.AgentStarted, u.ImageDigest, warnings, s.now().UnixMilli(), h.n)
	return err
}

func (s *Store) changeSession(t *tx, id string, cli *string, uid, gid *int) error {
	if cli == nil && uid == nil && gid == nil {
		return nil
	}
	_, err := t.exec(`UPDATE sessions SET cli_session_id = coalesce(?, cli_session_id), uid = coalesce(?, uid),
		gid = coalesce(?, gid), updated_at = ? WHERE id = ?`, cli, uid, gid, s.now().UnixMilli(), id)
	return err
}

// stale tells what a compare-and-set that met no row means.
func (t *tx) stale(sessionID string, expect int64) error {
	var have int64
	err := t.scan(`SELECT transcript_version FROM sessions WHERE id = ?`, []any{sessionID}, &have)
	if errors.Is(err, sql.ErrNoRows) {
		return errNoSession(sessionID)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("session %s: version %d expected, have %d: %w", sessionID, expect, have, ErrStale)
}
