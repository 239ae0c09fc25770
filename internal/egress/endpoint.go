package egress

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Endpoint is where a tenant's requests to the model go, and with what.
type Endpoint struct {
	// ModelURL is the endpoint's base, a path prefix included.
	ModelURL   string     `json:"model_url"`
	Credential Credential `json:"credential"`
	// ExtraHeaders are set on each model request, in place of the sandbox's.
	ExtraHeaders map[string]string `json:"extra_headers,omitempty"`
}

// String implements fmt.Stringer without credential and headers.
func (e Endpoint) String() string { return "endpoint " + redact(e.ModelURL) }

// GoString implements fmt.GoStringer.
func (e Endpoint) GoString() string { return e.String() }

// endpoint is an Endpoint made ready, immutable.
type endpoint struct {
	base    *url.URL // nil: not configured
	headers http.Header
}

// of is the endpoint of a tenant, whose name is the default one's where it is
// empty. One without a base is none.
func (s *settings) of(tenant string) *endpoint {
	if tenant == "" {
		tenant = stromboli.DefaultTenant
	}
	if own, ok := s.tenants[tenant]; ok {
		return own
	}
	if s.exclusive && tenant != stromboli.DefaultTenant {
		return &endpoint{}
	}
	return s.endpoint
}

// target is where the model's requests go, for the audit.
func (e *endpoint) target() target {
	if e.base == nil {
		return target{name: "demo"}
	}
	port := e.base.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[e.base.Scheme]
	}
	t, err := parseTarget(net.JoinHostPort(e.base.Hostname(), port))
	if err != nil { // a name that no sandbox could ask for
		return target{name: e.base.Hostname()}
	}
	return t
}

// clear reports whether secrets go to this endpoint without TLS, beyond this
// machine.
func (e *endpoint) clear() bool {
	return e.base != nil && e.base.Scheme == "http" && len(e.headers) > 0 && !loopbackHost(e.base.Hostname())
}

func (e Endpoint) compile() (*endpoint, error) {
	out := &endpoint{headers: http.Header{}}
	if e.ModelURL != "" {
		u, err := url.Parse(e.ModelURL)
		switch {
		case err != nil:
			return nil, fmt.Errorf("model url: it can't be read") // the text may hold a secret
		case u.Scheme != "https" && u.Scheme != "http":
			return nil, fmt.Errorf("model url: the scheme is neither https nor http")
		case u.Hostname() == "":
			return nil, fmt.Errorf("model url: no host")
		case u.User != nil:
			return nil, fmt.Errorf("model url: a user or password has no place in it")
		case u.RawQuery != "" || u.Fragment != "":
			return nil, fmt.Errorf("model url: a query or fragment has no place in it")
		}
		out.base = u
	}
	for name, value := range e.ExtraHeaders {
		if !validHeaderName(name) || !validHeaderValue(value) {
			return nil, fmt.Errorf("extra header %q: not a valid header", name)
		}
		out.headers.Set(name, value)
	}
	value := strings.TrimSpace(e.Credential.Value)
	if !validHeaderValue(value) {
		return nil, fmt.Errorf("credential: it holds characters that no header may hold")
	}
	switch kind := e.Credential.Kind; {
	case kind == None && value == "":
	case value == "":
		return nil, fmt.Errorf("credential: empty")
	case kind == APIKey:
		out.headers.Set("X-Api-Key", value)
	case kind == AuthToken, kind == OAuth:
		out.headers.Set("Authorization", "Bearer "+value)
	default:
		return nil, fmt.Errorf("credential: unknown kind %q", kind)
	}
	return out, nil
}
