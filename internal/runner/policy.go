package runner

import (
	"context"

	"github.com/tomblancdev/stromboli/internal/policy"
)

// policy is what runs are judged by at the moment.
func (r *Runner) policy() policy.Config { return *r.rules.Load() }

// SetPolicy judges runs by another policy from now on: those that are submitted,
// and those that wait, when it is their turn. Active runs keep their limits;
// hosts that the policy denies are denied to them too, in the background. Where
// their network is wider than the policy permits it stays as it is.
func (r *Runner) SetPolicy(p policy.Config) {
	r.rules.Store(&p)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.active {
		// An execution among the active ones is waited for, so the group isn't empty.
		r.executions.Go(func() { e.narrow(r.base) })
	}
}

// narrow puts the policy's network in force for a living run, as far as it
// only takes something away.
func (e *execution) narrow(ctx context.Context) {
	now := e.reach()
	n, err := e.r.policy().Network.Network(now.Network)
	if err != nil {
		e.r.log.WarnContext(ctx, "an active run reaches more than the new configuration permits, until it ends", "run", e.id, "reason", err)
		return
	}
	if same(n, now.Network) {
		return
	}
	if err := e.setNetwork(ctx, now.Tenant, n); err != nil {
		e.r.log.WarnContext(ctx, "putting the new configuration's network in force for an active run", "run", e.id, "error", err)
	}
}
