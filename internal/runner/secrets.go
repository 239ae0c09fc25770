package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/shim"
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
		if strings.HasPrefix(name, policy.EnginePrefix) {
			continue
		}
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
	return r.checkEngineSecrets(ctx, tenant, spec)
}

// checkEngineSecrets refuses secrets of the engine's that configuration doesn't
// permit, or that are not there. What isn't permitted is not looked for: nobody
// learns whether it is there.
func (r *Runner) checkEngineSecrets(ctx context.Context, tenant string, spec stromboli.RunSpec) error {
	if len(engineSecrets(spec)) == 0 {
		return nil
	}
	field := func(variable string) (name, at string, ok bool) {
		name, ok = strings.CutPrefix(spec.Podman.SecretsEnv[variable], policy.EnginePrefix)
		return name, secretsField + "." + variable, ok
	}
	variables := slices.Sorted(maps.Keys(spec.Podman.SecretsEnv))
	for _, variable := range variables {
		name, at, ok := field(variable)
		switch {
		case !ok:
		case !policy.ValidEngineSecret(name):
			return stromboli.FieldError(at, "%.300q is no name of a secret of the engine's: 1 to %d letters, digits, dots, dashes and underscores", name, stromboli.MaxSecretName)
		case !r.policy().EngineSecrets.Allow(tenant, name):
			return stromboli.FieldError(at, "the engine's secret %q may not be used: STROMBOLI_SECRETS_ENGINE_NAMES doesn't permit it", name)
		}
	}
	there, err := r.cfg.Sandboxes.EngineSecrets(ctx)
	if err != nil {
		return err
	}
	for _, variable := range variables {
		if name, at, ok := field(variable); ok && !slices.Contains(there, name) {
			return stromboli.FieldError(at, "the engine has no secret %q; `podman secret create` makes one", name)
		}
	}
	return nil
}

// engineSecrets are the names of the engine's secrets that a spec asks for, in
// order: the sandbox has them by their places.
func engineSecrets(spec stromboli.RunSpec) []string {
	var names []string
	for _, secret := range spec.Podman.SecretsEnv {
		if name, ok := strings.CutPrefix(secret, policy.EnginePrefix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// secretFiles are the variables that hold secrets of the engine's, with the
// files from which the shim reads them.
func (e *execution) secretFiles() map[string]string {
	names := engineSecrets(e.row.Spec)
	files := map[string]string{}
	for variable, secret := range e.row.Spec.Podman.SecretsEnv {
		if name, ok := strings.CutPrefix(secret, policy.EnginePrefix); ok {
			files[variable] = shim.SecretFile(slices.Index(names, name))
		}
	}
	return files
}

// secrets are the values for the agent's environment, but those that the shim
// reads itself. They go to the shim and nowhere else.
func (e *execution) secrets(ctx context.Context) (map[string]string, error) {
	values := make(map[string]string, len(e.row.Spec.Podman.SecretsEnv))
	for variable, name := range e.row.Spec.Podman.SecretsEnv {
		if name, ok := strings.CutPrefix(name, policy.EnginePrefix); ok { // the shim has it
			if !e.r.policy().EngineSecrets.Allow(e.row.Tenant, name) {
				return nil, stromboli.Errorf(stromboli.NotConfigured, "the engine's secret %s may not be used any more", name)
			}
			continue
		}
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
