package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tomblancdev/stromboli"
)

const (
	secretsField = "podman.secrets_env"
	// maxVariable is the kernel's limit of one variable, name and "=" included
	// (MAX_ARG_STRLEN less the NUL); maxSecrets keeps all of them within what an
	// exec takes.
	maxVariable = 128<<10 - 1
	maxSecrets  = 1 << 20
)

// checkSecrets refuses a spec whose secrets are not there or can't be carried.
func (r *Runner) checkSecrets(ctx context.Context, tenant string, spec stromboli.RunSpec) error {
	total := 0
	for _, variable := range slices.Sorted(maps.Keys(spec.Podman.SecretsEnv)) {
		name := spec.Podman.SecretsEnv[variable]
		value, err := r.cfg.Secrets.Get(ctx, tenant, name)
		switch {
		case errors.Is(err, stromboli.NotFound):
			return stromboli.FieldError(secretsField+"."+variable, "there is no secret %q; POST /secrets makes one", name)
		case err != nil:
			return err
		case len(variable)+1+len(value) > maxVariable:
			return stromboli.FieldError(secretsField+"."+variable, "the secret %s is too long for an environment variable, of which the kernel takes %d bytes", name, maxVariable)
		}
		if total += len(variable) + len(value) + 2; total > maxSecrets {
			return stromboli.FieldError(secretsField, "the secrets are larger than %d bytes together", maxSecrets)
		}
	}
	return nil
}

// secrets are the values for the agent's environment. They go to the shim and
// nowhere else.
func (e *execution) secrets(ctx context.Context) (map[string]string, error) {
	values := make(map[string]string, len(e.row.Spec.Podman.SecretsEnv))
	for variable, name := range e.row.Spec.Podman.SecretsEnv {
		value, err := e.r.cfg.Secrets.Get(ctx, e.row.Tenant, name)
		if errors.Is(err, stromboli.NotFound) {
			return nil, stromboli.Errorf(stromboli.NotConfigured, "the secret %s was deleted before the run started", name)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the secret %s: %w", name, err)
		}
		values[variable] = string(value)
	}
	return values, nil
}
