package store

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
)

// selectRun reads whole runs, in the order of scanRun.
const selectRun = `SELECT r.n, r.id, r.tenant, r.created_by, r.kind, r.session_id, r.session_alias, r.status, r.phase, r.sandbox_id,
	r.agent_started, r.cancel_reason, r.owner, r.epoch, r.created_at, r.updated_at, r.started_at, r.finished_at,
	r.image_digest, r.warnings, r.last_seq, r.last_line, r.network, r.egress_seq, r.egress_denied, s.spec, o.outcome
	FROM runs r JOIN run_specs s ON s.run = r.n LEFT JOIN run_outcomes o ON o.run = r.n `

// row is a run and what only the store knows of it.
type row struct {
	stromboli.Run
	n    int64
	size int // bytes of spec and outcome
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface{ Scan(dest ...any) error }

func scanRun(sc scanner) (row, error) {
	var (
		r                    row
		created, updated     int64
		started, finished    sql.NullInt64
		warnings, spec       string
		network              string
		outcome              sql.NullString
		kind, status, phase  string
		cancelReason, digest string
	)
	err := sc.Scan(&r.n, &r.ID, &r.Tenant, &r.CreatedBy, &kind, &r.SessionID, &r.SessionAlias, &status, &phase, &r.SandboxID,
		&r.AgentStarted, &cancelReason, &r.Owner, &r.Epoch, &created, &updated, &started, &finished,
		&digest, &warnings, &r.LastSeq, &r.LastLine, &network, &r.EgressSeq, &r.EgressDenied, &spec, &outcome)
	if err != nil {
		return row{}, err
	}
	r.Kind, r.Status, r.Phase = stromboli.Kind(kind), stromboli.Status(status), stromboli.Phase(phase)
	r.CancelReason, r.ImageDigest = stromboli.Reason(cancelReason), digest
	r.CreatedAt, r.UpdatedAt = fromMillis(created), fromMillis(updated)
	if started.Valid {
		r.StartedAt = fromMillis(started.Int64)
	}
	if finished.Valid {
		r.FinishedAt = fromMillis(finished.Int64)
	}
	r.size = len(spec) + len(outcome.String)
	if err := json.Unmarshal([]byte(spec), &r.Spec); err != nil {
		return row{}, fmt.Errorf("spec of run %s: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(network), &r.Network); err != nil {
		return row{}, fmt.Errorf("network of run %s: %w", r.ID, err)
	}
	if err := json.Unmarshal([]byte(warnings), &r.Warnings); err != nil {
		return row{}, fmt.Errorf("warnings of run %s: %w", r.ID, err)
	}
	if outcome.Valid {
		if err := json.Unmarshal([]byte(outcome.String), &r.Outcome); err != nil {
			return row{}, fmt.Errorf("outcome of run %s: %w", r.ID, err)
		}
	}
	return r, nil
}

// run reads a run inside a transaction; NotFound where it is missing. An empty
// tenant is every tenant.
func (t *tx) run(tenant, id string) (row, error) {
	st, err := t.prepare(selectRun + `WHERE r.id = ?`)
	if err != nil {
		return row{}, err
	}
	r, err := scanRun(st.QueryRowContext(t.ctx, id))
	if errors.Is(err, sql.ErrNoRows) || (err == nil && tenant != "" && r.Tenant != tenant) {
		return row{}, errNoRun(id)
	}
	return r, err
}

// head is the part of a run that every write looks at.
type head struct {
	n, epoch          int64
	id, session       string
	status            stromboli.Status
	cancelReason      stromboli.Reason
	lastSeq, lastLine int64
}

func (r row) head() *head {
	return &head{
		n: r.n, epoch: r.Epoch, id: r.ID, session: r.SessionID, status: r.Status, cancelReason: r.CancelReason,
		lastSeq: r.LastSeq, lastLine: r.LastLine,
	}
}

// owned reads the head of a run that the holder of epoch wants to change:
// NotFound, ErrFenced or, where the run has ended, Conflict.
func (t *tx) owned(id string, epoch int64) (head, error) {
	h := head{id: id}
	var status, reason string
	err := t.scan(`SELECT n, epoch, session_id, status, cancel_reason, last_seq, last_line FROM runs WHERE id = ?`,
		[]any{id}, &h.n, &h.epoch, &h.session, &status, &reason, &h.lastSeq, &h.lastLine)
	if errors.Is(err, sql.ErrNoRows) {
		return head{}, errNoRun(id)
	}
	if err != nil {
		return head{}, err
	}
	h.status, h.cancelReason = stromboli.Status(status), stromboli.Reason(reason)
	if h.epoch != epoch {
		return head{}, fmt.Errorf("run %s, epoch %d, now %d: %w", id, epoch, h.epoch, ErrFenced)
	}
	if h.status.Terminal() {
		return head{}, errEnded(id, h.status)
	}
	return h, nil
}

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// millis is now where t is not set.
func (s *Store) millis(t time.Time) int64 {
	if t.IsZero() {
		t = s.now()
	}
	return t.UnixMilli()
}

// text is v as JSON, as a string: STRICT columns tell text from blobs.
func text(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// warningsText writes no warnings as an empty list, never as null.
func warningsText(w []stromboli.Warning) (string, error) {
	if len(w) == 0 {
		return "[]", nil
	}
	return text(w)
}
