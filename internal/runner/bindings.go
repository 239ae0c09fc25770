package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// checkBindings refuses a spec whose bound secrets are not there or can't be
// shown, and variables that would undo what bindings need.
func (r *Runner) checkBindings(ctx context.Context, tenant string, spec stromboli.RunSpec) error {
	if len(spec.Bindings) == 0 {
		return nil
	}
	for i, b := range spec.Bindings {
		field := "bindings[" + strconv.Itoa(i) + "].secret"
		value, err := r.cfg.Secrets.Get(ctx, tenant, b.Secret)
		if errors.Is(err, stromboli.NotFound) {
			return stromboli.FieldError(field, "there is no secret %q; POST /secrets makes one", b.Secret)
		}
		if err != nil {
			return err
		}
		if _, _, err := policy.BindingValue(b, value); err != nil {
			return stromboli.FieldError(field, "%v", err)
		}
	}
	if err := claude.ValidateTrust("env", spec.Env); err != nil {
		return err
	}
	return claude.ValidateTrust(secretsField, spec.Podman.SecretsEnv)
}

// bind reads what the run's bound hosts are to be shown. It goes to egress and
// nowhere else.
func (e *execution) bind(ctx context.Context) error {
	if err := e.bindAgain(ctx); err != nil {
		return err
	}
	e.networks.Lock()
	defer e.networks.Unlock()
	for _, b := range e.bindings {
		if b.Fault != "" {
			return stromboli.Errorf(stromboli.NotConfigured, "the binding of %s: %s before the run started", b.To, b.Fault)
		}
	}
	return nil
}

// bindAgain is bind for an agent that is there already: a host whose secret is
// not there any more is not reached.
func (e *execution) bindAgain(ctx context.Context) error {
	// Whoever tells of a change waits, so that what is read is not older than it.
	e.networks.Lock()
	defer e.networks.Unlock()
	return e.readBindings(ctx)
}

// readBindings is bindAgain for those who hold networks.
func (e *execution) readBindings(ctx context.Context) error {
	list, err := e.bound(ctx)
	if err == nil {
		e.bindings = list
	}
	return err
}

func (e *execution) bound(ctx context.Context) ([]sandbox.Binding, error) {
	list := make([]sandbox.Binding, 0, len(e.wanted))
	for _, b := range e.wanted {
		to, err := policy.BindingHost(b)
		if err != nil {
			return nil, fmt.Errorf("the binding of %s: %w", b.Host, err)
		}
		out := sandbox.Binding{To: to}
		value, err := e.r.cfg.Secrets.Get(ctx, e.tenant, b.Secret)
		switch {
		case errors.Is(err, stromboli.NotFound):
			out.Fault = "the secret " + b.Secret + " was deleted"
		case errors.Is(err, stromboli.NotConfigured):
			out.Fault = "the secret " + b.Secret + " can't be opened"
		case err != nil:
			return nil, fmt.Errorf("reading the secret %s: %w", b.Secret, err)
		default:
			if out.Header, out.Value, err = policy.BindingValue(b, value); err != nil {
				out.Fault = err.Error()
			}
		}
		list = append(list, out)
	}
	return list, nil
}

// SecretChanged has live runs use what a secret holds by now. It returns when it
// is in force: one that was deleted is shown to nobody any more.
func (r *Runner) SecretChanged(ctx context.Context, tenant, name string) error {
	r.mu.Lock()
	var using []*execution
	for _, e := range r.active {
		if e.tenant == tenant && slices.ContainsFunc(e.wanted, func(b stromboli.Binding) bool { return b.Secret == name }) {
			using = append(using, e)
		}
	}
	r.mu.Unlock()
	errs := make([]error, len(using))
	var told sync.WaitGroup
	for i, e := range using {
		told.Go(func() { errs[i] = e.rebind(ctx) })
	}
	told.Wait()
	return errors.Join(errs...)
}

func (e *execution) rebind(ctx context.Context) error {
	e.networks.Lock()
	defer e.networks.Unlock()
	if err := e.readBindings(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	box := e.running
	e.mu.Unlock()
	if box == nil { // whoever makes the sandbox looks again
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), egressPatience)
	defer cancel()
	return e.r.cfg.Sandboxes.SetReach(ctx, box, e.reachNow())
}
