package runner

import (
	"context"
	"slices"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// networkAdvice tells what a network means that callers may not expect.
func networkAdvice(n stromboli.Network) []stromboli.Warning {
	switch n.Mode {
	case stromboli.NetworkNone:
		return []stromboli.Warning{{Code: "network_none", Message: "the network's mode is none: the agent can't reach its model"}}
	case stromboli.NetworkBridge:
		return []stromboli.Warning{{Code: "network_unfiltered", Message: "the network's mode is bridge: what the agent reaches is neither filtered nor recorded"}}
	case stromboli.NetworkModel, stromboli.NetworkAllowlist, stromboli.NetworkOpen:
	}
	return nil
}

// reach is what the run's sandbox reaches by now.
func (e *execution) reach() sandbox.Reach {
	e.networks.Lock()
	defer e.networks.Unlock()
	return e.reachNow()
}

// reachNow is reach for those who hold networks.
func (e *execution) reachNow() sandbox.Reach {
	return sandbox.Reach{Tenant: e.tenant, Network: e.network, Bindings: e.bindings}
}

// allowed judges the run's network by the configuration, which may have become
// narrower since.
func (e *execution) allowed() error {
	e.networks.Lock()
	defer e.networks.Unlock()
	n, err := e.r.policy().Network.Network(e.network)
	if err == nil {
		e.network = n
	}
	return err
}

// keepReach gives a sandbox that was made with a reach what the run's network
// has become meanwhile.
func (e *execution) keepReach(ctx context.Context, made sandbox.Reach) error {
	e.networks.Lock()
	defer e.networks.Unlock()
	if same(made.Network, e.network) && slices.Equal(made.Bindings, e.bindings) {
		return nil
	}
	return e.r.cfg.Sandboxes.SetReach(ctx, e.box, e.reachNow())
}

// SetNetwork changes what a run may reach, within what configuration permits,
// and returns what that is. It is durable on return, and in force: new
// connections are judged by it, and open ones that it doesn't permit are cut.
func (r *Runner) SetNetwork(ctx context.Context, p stromboli.Principal, id string, wish stromboli.Network) (stromboli.Network, error) {
	n, err := r.policy().Network.Network(wish)
	if err != nil {
		return n, err
	}
	run, err := r.cfg.Store.GetRun(ctx, p.Tenant, id)
	if err != nil {
		return n, err
	}
	// A pending run is claimed with the one network or the other, and then this
	// finds its execution.
	r.claiming.Lock()
	e := r.execution(id)
	if e == nil {
		defer r.claiming.Unlock()
		_, err := r.cfg.Store.SetNetwork(ctx, p.Tenant, id, n)
		if err == nil {
			r.cfg.Log.Wake(id)
		}
		return n, err
	}
	r.claiming.Unlock()
	return n, e.setNetwork(ctx, run.Tenant, n)
}

// egressPatience bounds the wait of a change for an egress that is not there.
const egressPatience = 10 * time.Second

func (e *execution) setNetwork(ctx context.Context, tenant string, n stromboli.Network) error {
	e.networks.Lock()
	defer e.networks.Unlock()
	e.mu.Lock()
	box := e.running
	e.mu.Unlock()
	if err := policy.CanChange(e.network, n); err != nil {
		return err
	}
	if _, err := e.r.cfg.Store.SetNetwork(ctx, tenant, e.id, n); err != nil {
		return err
	}
	e.network = n
	e.r.cfg.Log.Wake(e.id)
	if box == nil { // whoever makes the sandbox looks again
		return nil
	}
	// What is recorded is carried out, whatever becomes of the caller.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), egressPatience)
	defer cancel()
	if err := e.r.cfg.Sandboxes.SetReach(ctx, box, e.reachNow()); err != nil {
		return (&stromboli.Error{
			Code: stromboli.EngineDown, RetryAfter: time.Second,
			Message: "the network's change is recorded and could not be put in force yet: it is as soon as egress answers; ask again to be sure",
		}).WithCause(err)
	}
	return nil
}

// same compares networks in canonical form.
func same(a, b stromboli.Network) bool {
	return a.Mode == b.Mode && slices.Equal(a.Allow, b.Allow) && slices.Equal(a.Deny, b.Deny)
}
