package runner

import (
	"context"

	"github.com/tomblancdev/stromboli"
)

// Load is how much a Runner has to do.
type Load struct {
	Pending int // runs that wait for a slot
	Running int // slots in use
	Slots   int
	// Draining: no run is taken or started any more.
	Draining bool
}

// Load tells how much there is to do now.
func (r *Runner) Load() Load {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Load{Pending: max(r.pending, 0), Running: r.slots, Slots: r.cfg.MaxRunning, Draining: r.draining}
}

// compareUsage tells what an agent said that it used beside what egress saw of
// the same run. Without the agent's word there is nothing to compare.
func (e *execution) compareUsage(ctx context.Context, agent *stromboli.Usage) {
	if agent == nil || e.r.cfg.Used == nil {
		return
	}
	counted, err := e.r.cfg.Store.EgressUsage(ctx, e.id)
	if err != nil {
		e.log.DebugContext(ctx, "summing what egress counted", "error", err)
		return
	}
	e.r.cfg.Used(*agent, counted)
}
