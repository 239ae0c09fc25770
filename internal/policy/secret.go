package policy

import (
	"fmt"
	"path"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// EnginePrefix begins the names of secrets that the container engine keeps.
const EnginePrefix = "engine:"

// SecretPatterns say which of the engine's secrets a tenant's runs may name.
// None: no run may name any.
type SecretPatterns []secretPattern

type secretPattern struct{ tenant, name string }

// ParseSecretPatterns reads patterns "name" and "tenant/name", in which * stands
// for any characters. Without a tenant it is the default one.
func ParseSecretPatterns(list []string) (SecretPatterns, error) {
	var out SecretPatterns
	for _, s := range list {
		p := secretPattern{tenant: stromboli.DefaultTenant, name: strings.TrimSpace(s)}
		if tenant, name, ok := strings.Cut(p.name, "/"); ok {
			p.tenant, p.name = tenant, name
		}
		if !ValidEngineSecret(strings.ReplaceAll(p.tenant, "*", "x")) || !ValidEngineSecret(strings.ReplaceAll(p.name, "*", "x")) {
			return nil, fmt.Errorf("STROMBOLI_SECRETS_ENGINE_NAMES: %q is neither name nor tenant/name, each of letters, digits, '.', '_', '-' and *", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// Allow reports whether a tenant's runs may name a secret of the engine's.
func (p SecretPatterns) Allow(tenant, name string) bool {
	for _, one := range p {
		if matches(one.tenant, tenant) && matches(one.name, name) {
			return true
		}
	}
	return false
}

func matches(pattern, s string) bool {
	ok, err := path.Match(pattern, s)
	return ok && err == nil
}

// ValidEngineSecret reports whether a secret of the engine's may be named so: 1
// to 253 letters, digits, dots, underscores and dashes.
func ValidEngineSecret(name string) bool {
	return stromboli.ValidSecretName(strings.ReplaceAll(name, ".", "_"))
}
