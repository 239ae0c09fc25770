package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli"
)

// attest stores a run's attestation in place of an earlier one's; nil is none.
func (t *tx) attest(run int64, a *stromboli.Attestation) error {
	if a == nil {
		return nil
	}
	body, err := text(a)
	if err != nil {
		return err
	}
	_, err = t.exec(`INSERT INTO run_attestations (run, attestation) VALUES (?, ?) ON CONFLICT DO UPDATE SET attestation = excluded.attestation`, run, body)
	return err
}

// Attestation is what was in force for a run's sandbox. NotFound where the run
// is missing, another tenant's, or has none yet.
func (s *Store) Attestation(ctx context.Context, tenant, runID string) (stromboli.Attestation, error) {
	var a stromboli.Attestation
	var body sql.NullString
	err := s.readDB.QueryRowContext(ctx, `SELECT a.attestation FROM runs r LEFT JOIN run_attestations a ON a.run = r.n WHERE r.id = ? AND r.tenant = ?`,
		runID, tenant).Scan(&body)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return a, errNoRun(runID)
	case err != nil:
		return a, s.classify("read attestation", err)
	case !body.Valid:
		return a, stromboli.Errorf(stromboli.NotFound, "run %s has no attestation: its agent has not been started", runID)
	}
	if err := json.Unmarshal([]byte(body.String), &a); err != nil {
		return a, fmt.Errorf("attestation of run %s: %w", runID, err)
	}
	return a, nil
}
