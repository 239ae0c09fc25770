package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
)

// DeleteIdleSession removes a session and all that belongs to it, as DeleteSession
// does, where nobody has used it since a time and nothing needs it, and reports
// whether it did.
func (r *Runner) DeleteIdleSession(ctx context.Context, id string, before time.Time) (bool, error) {
	done, err := r.enter()
	if err != nil {
		return false, err
	}
	defer done()
	s, err := r.cfg.Store.DeleteIdleSession(ctx, id, before)
	if errors.Is(err, stromboli.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := r.remove(ctx, s); err != nil {
		r.executions.Go(func() { r.removeLater(r.base, s) })
		return false, fmt.Errorf("removing what belongs to session %s: %w", s.ID, err)
	}
	return true, nil
}
