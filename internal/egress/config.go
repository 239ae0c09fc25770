package egress

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// CredentialKind says how a credential is shown to the model's endpoint.
type CredentialKind string

// The kinds. None sends nothing: a gateway may need only ExtraHeaders.
const (
	None      CredentialKind = ""
	APIKey    CredentialKind = "api_key"    // x-api-key
	AuthToken CredentialKind = "auth_token" // authorization: Bearer
	OAuth     CredentialKind = "oauth"      // authorization: Bearer
)

// Credential is the model's real one. It never prints its value.
type Credential struct {
	Kind  CredentialKind `json:"kind"`
	Value string         `json:"value"`
}

// String implements fmt.Stringer without the value.
func (c Credential) String() string { return "credential(" + string(c.Kind) + ")" }

// GoString implements fmt.GoStringer without the value.
func (c Credential) GoString() string { return c.String() }

// LogValue implements slog.LogValuer without the value.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Config is what egress does for every sandbox. A later one holds for requests
// that begin after it.
type Config struct {
	// ModelURL is the endpoint's base, a path prefix included.
	ModelURL   string     `json:"model_url"`
	Credential Credential `json:"credential"`
	// ExtraHeaders are set on each model request, in place of the sandbox's.
	ExtraHeaders map[string]string `json:"extra_headers,omitempty"`
	// Tenants are the endpoints of tenants that have one of their own, by name.
	// One without a URL has none at all.
	Tenants map[string]Endpoint `json:"tenants,omitempty"`
	// Exclusive: the endpoint above is the default tenant's alone, and a tenant
	// that Tenants doesn't name has none.
	Exclusive bool `json:"exclusive,omitempty"`
	// Demo answers model requests by the scripted model; ModelURL is not used.
	Demo bool `json:"demo,omitempty"`
	// Proxy is the proxy behind which this host stands: the model's endpoint is
	// reached through it, and of the hosts that sandboxes ask for those that
	// ProxyHosts names (patterns of names).
	Proxy      UpstreamProxy `json:"proxy,omitzero"`
	ProxyHosts []string      `json:"proxy_hosts,omitempty"`
	// Allow exempts targets from the address policy: "name:port", "ip:port",
	// "[ip]:port", "cidr:port".
	Allow []string `json:"allow,omitempty"`
	// Spans: what agents export for their traces is taken, and kept for the server.
	Spans bool `json:"spans,omitempty"`
}

// String implements fmt.Stringer; extra headers may be secrets, so only their number shows.
func (c Config) String() string {
	return fmt.Sprintf("egress config(model %s, %s, %d headers, %d tenants with their own, demo %v, allow %v, proxy %v for %v)",
		redact(c.ModelURL), c.Credential, len(c.ExtraHeaders), len(c.Tenants), c.Demo, c.Allow, c.Proxy.URL != "", c.ProxyHosts)
}

// GoString implements fmt.GoStringer.
func (c Config) GoString() string { return c.String() }

func redact(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return u.Redacted()
	}
	return "(unreadable)"
}

// Validate reports the first fault of c.
func (c Config) Validate() error {
	_, err := c.compile()
	return err
}

// settings is a Config made ready, immutable.
type settings struct {
	demo      bool
	spans     bool
	endpoint  *endpoint            // of tenants without one of their own
	tenants   map[string]*endpoint // by name
	exclusive bool                 // endpoint is the default tenant's alone
	allow     allowList
	// upstream is nil where there is none.
	upstream *parentProxy
}

func (c Config) compile() (*settings, error) {
	allow, err := parseAllow(c.Allow)
	if err != nil {
		return nil, err
	}
	s := &settings{demo: c.Demo, spans: c.Spans, allow: allow, exclusive: c.Exclusive, tenants: map[string]*endpoint{}}
	if s.upstream, err = compileUpstream(c.Proxy, c.ProxyHosts); err != nil {
		return nil, err
	}
	own := Endpoint{ModelURL: c.ModelURL, Credential: c.Credential, ExtraHeaders: c.ExtraHeaders}
	if s.endpoint, err = own.compile(); err != nil {
		return nil, err
	}
	for name, e := range c.Tenants {
		if s.tenants[name], err = e.compile(); err != nil {
			return nil, fmt.Errorf("tenant %s: %w", name, err)
		}
	}
	return s, nil
}

// validHeaderName reports whether s is a token of RFC 9110.
func validHeaderName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return s != ""
}

// validHeaderValue reports whether s holds no control character but a tab.
func validHeaderValue(s string) bool {
	for i := range len(s) {
		if (s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f {
			return false
		}
	}
	return true
}
