package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// newRun is a stromboli.NewRun on its way into the tables.
type newRun stromboli.NewRun

// CreateRun stores a run, its first events (sequences 1, 2, …) and its claim on
// its session. A run that begins as Running is its Owner's, with epoch 1. Zero
// times are now. existing tells that the idempotency key was used before (within
// 24 h): then the run is that of the first call and nothing was written.
//
// Which session it becomes stands at stromboli.NewRun; the run's SessionID and
// SessionAlias tell it afterwards, and Resume of its spec is set when there was
// one to go on with. Of CreateSession the CLISessionID, UID, GID, Ephemeral and
// Hooks count, the rest is the run's. MaxQueued bounds the pending runs of the run's
// tenant, this one included, and doesn't concern one that begins as Running.
//
// Errors: KeyReused, SessionExists, SessionBusy (it has an active run, or is
// being copied), NotFound (no such session of this tenant), QueueFull; Conflict
// where the run's id is taken.
func (s *Store) CreateRun(ctx context.Context, n stromboli.NewRun) (run stromboli.Run, existing bool, err error) {
	in := newRun(n)
	if err := in.check(); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := s.Damage(); err != nil {
		return stromboli.Run{}, false, err
	}
	type answer struct {
		run      stromboli.Run
		existing bool
	}
	a, err := write(ctx, s, "create run", func(t *tx) (answer, error) {
		if first, ok, err := s.repeated(t, in); err != nil || ok {
			return answer{first, ok}, err
		}
		if err := in.queue(t); err != nil {
			return answer{}, err
		}
		if err := s.claimSession(t, &in); err != nil {
			return answer{}, err
		}
		run, err := s.insertRun(t, in)
		if err != nil {
			return answer{}, err
		}
		return answer{run: run}, s.rememberKey(t, in)
	})
	return a.run, a.existing, err
}

// check finds the caller's own mistakes.
func (in newRun) check() error {
	r := in.Run
	switch {
	case r.ID == "" || r.Tenant == "":
		return errors.New("create run: id and tenant are required")
	case r.SessionID == "" && (in.CreateSession != nil || in.Continue == "" && in.SessionAlias == ""):
		return errors.New("create run: a session is required")
	case r.Status == stromboli.Running && r.Owner == "":
		return errors.New("create run: a running run needs an owner")
	case r.Status != stromboli.Running && r.Status != stromboli.Pending:
		return fmt.Errorf("create run: a run can't begin as %q", r.Status)
	case in.Idempotency != nil && in.Idempotency.Tenant != "" && in.Idempotency.Tenant != r.Tenant:
		return errors.New("create run: the idempotency key is another tenant's")
	case in.CreateSession == nil && !in.resumes():
		return errors.New("create run: neither a new session nor one to resume")
	case in.Fork && (in.CreateSession == nil || !in.resumes() || in.ResumeSession == r.SessionID):
		return errors.New("create run: a fork needs a session to copy and a new one")
	case in.ResumeSession != "" && in.ResumeSession != r.SessionID && !in.Fork:
		return errors.New("create run: the session to resume is not the run's")
	}
	return nil
}

func (in newRun) queue(t *tx) error {
	if in.Run.Status != stromboli.Pending {
		return nil
	}
	var n int
	if err := t.scan(`SELECT count(*) FROM runs WHERE tenant = ? AND status = 'pending'`, []any{in.Run.Tenant}, &n); err != nil {
		return err
	}
	if n >= in.MaxQueued {
		return stromboli.Errorf(stromboli.QueueFull, "the queue is full: %d runs are waiting", n)
	}
	return nil
}

func (s *Store) insertRun(t *tx, in newRun) (stromboli.Run, error) {
	r := in.Run
	spec, err := text(r.Spec)
	if err != nil {
		return stromboli.Run{}, err
	}
	warnings, err := warningsText(r.Warnings)
	if err != nil {
		return stromboli.Run{}, err
	}
	network, err := text(r.Network)
	if err != nil {
		return stromboli.Run{}, err
	}
	created := s.millis(r.CreatedAt)
	var started sql.NullInt64
	var epoch int64
	owner := ""
	if r.Status == stromboli.Running {
		started, epoch, owner = sql.NullInt64{Int64: created, Valid: true}, 1, r.Owner
	}
	var taken int
	if err := t.scan(`SELECT count(*) FROM runs WHERE id = ?`, []any{r.ID}, &taken); err != nil {
		return stromboli.Run{}, err
	}
	if taken > 0 {
		return stromboli.Run{}, stromboli.Errorf(stromboli.Conflict, "run %s exists already", r.ID)
	}
	n, err := t.insert(`INSERT INTO runs (id, tenant, created_by, kind, session_id, session_alias, status, phase, owner, epoch,
		created_at, updated_at, started_at, warnings, network) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		r.ID, r.Tenant, r.CreatedBy, string(r.Kind), r.SessionID, r.SessionAlias, string(r.Status), string(r.Phase), owner, epoch,
		created, created, started, warnings, network)
	if err != nil {
		return stromboli.Run{}, err
	}
	if _, err := t.exec(`INSERT INTO run_specs (run, spec) VALUES (?, ?)`, n, spec); err != nil {
		return stromboli.Run{}, err
	}
	if _, err := t.exec(`UPDATE sessions SET run_count = run_count + 1 WHERE id = ?`, r.SessionID); err != nil {
		return stromboli.Run{}, err
	}
	if err := t.rememberWebhook(n, r.Spec.WebhookURL); err != nil {
		return stromboli.Run{}, err
	}
	for k, v := range r.Spec.Metadata {
		if _, err := t.exec(`INSERT INTO run_metadata (tenant, key, value, created_at, run) VALUES (?, ?, ?, ?, ?)`,
			r.Tenant, k, v, created, n); err != nil {
			return stromboli.Run{}, err
		}
	}
	if in.Workspace != "" {
		if _, err := t.exec(`INSERT INTO session_workspaces (tenant, workspace, session, run) VALUES (?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET run = excluded.run`, r.Tenant, in.Workspace, r.SessionID, n); err != nil {
			return stromboli.Run{}, err
		}
	}
	if in.FirstEvents != nil {
		in.Events = in.FirstEvents(r)
	}
	if _, err := s.appendEvents(t, &head{n: n, id: r.ID}, in.Events); err != nil {
		return stromboli.Run{}, err
	}
	stored, err := t.run("", r.ID)
	return stored.Run, err
}
