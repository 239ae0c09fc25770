package egress

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/tomblancdev/stromboli/internal/policy"
)

// Binding is a secret that is shown to one host. It never prints its value.
type Binding struct {
	// To is the host, "name:port".
	To string `json:"to"`
	// Header is the header that shows the secret, Value its content.
	Header string `json:"header"`
	Value  string `json:"value"`
	// Fault, if set, says why there is no value: connections to the host are
	// refused then.
	Fault string `json:"fault,omitempty"`
}

// String implements fmt.Stringer without the value.
func (b Binding) String() string { return "binding of " + b.To }

// GoString implements fmt.GoStringer without the value.
func (b Binding) GoString() string { return b.String() }

// Identity is what a sandbox's connections to bound hosts are opened with: a
// certificate for them that the sandbox trusts, and its key. It never prints the
// key.
type Identity struct {
	Certificate string `json:"certificate,omitempty"` // PEM
	Key         string `json:"key,omitempty"`         // PEM
}

// String implements fmt.Stringer without the key.
func (Identity) String() string { return "identity" }

// GoString implements fmt.GoStringer without the key.
func (i Identity) GoString() string { return i.String() }

// bound are a sandbox's bindings made ready, immutable.
type bound struct {
	hosts    map[target]Binding
	identity tls.Certificate
}

// compileBindings reports the first fault without repeating a value.
func compileBindings(list []Binding, id Identity) (bound, error) {
	b := bound{hosts: make(map[target]Binding, len(list))}
	if len(list) == 0 {
		return b, nil
	}
	var err error
	if b.identity, err = tls.X509KeyPair([]byte(id.Certificate), []byte(id.Key)); err != nil {
		return b, errors.New("identity: not a certificate with its key")
	}
	for _, binding := range list {
		to, err := parseTarget(binding.To)
		if err != nil {
			return b, fmt.Errorf("binding: %w", err)
		}
		if to.name == "" {
			return b, fmt.Errorf("binding of %s: it is for a name", to)
		}
		if _, twice := b.hosts[to]; twice {
			return b, fmt.Errorf("binding of %s: it is there twice", to)
		}
		if binding.Fault == "" && (binding.Value == "" || !validHeaderName(binding.Header) || !validHeaderValue(binding.Value)) {
			return b, fmt.Errorf("binding of %s: not a valid header", to)
		}
		if err := b.identity.Leaf.VerifyHostname(to.name); err != nil {
			return b, fmt.Errorf("binding of %s: the identity is not for it", to)
		}
		b.hosts[to] = binding
	}
	return b, nil
}

// kindOf says how a tunnel to host:port is recorded and treated.
func (d *door) kindOf(address string) string {
	to, err := parseTarget(address)
	if err != nil {
		return kindTunnel
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.rules.bound.hosts[to]; ok {
		return kindBinding
	}
	return kindTunnel
}

// binding is what holds by now for a bound host.
func (d *door) binding(to target) (Binding, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rules.binding(to)
}

// binding refuses a host without one, or one whose secret isn't there: it is
// never asked without.
func (r *rules) binding(to target) (Binding, error) {
	b, ok := r.bound.hosts[to]
	switch {
	case !ok:
		return b, refuse(fmt.Errorf("%s is not bound any more", to))
	case b.Fault != "":
		return b, refuse(fmt.Errorf("%s is bound, but %s", to, b.Fault))
	}
	return b, nil
}

// sameHost reports whether the Host of a request names a target.
func (t target) sameHost(host string) bool {
	if named, err := parseTarget(host); err == nil {
		return named == t
	}
	name, addr, err := policy.ParseHost(host)
	return err == nil && !addr.IsValid() && name == t.name && t.port == httpsPort
}

const httpsPort = 443

// authority is the Host of requests to a target.
func (t target) authority() string {
	if t.port == httpsPort {
		return t.host()
	}
	return t.String()
}
