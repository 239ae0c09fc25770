package tracing

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// The protocols of OTLP that a collector may speak.
const (
	GRPC = "grpc"
	HTTP = "http"
)

// Endpoint is where a collector listens.
type Endpoint struct {
	Protocol string // GRPC or HTTP
	Address  string // host:port
	Path     string // of HTTP
	Plain    bool   // without TLS
}

// ParseEndpoint reads where traces go: host:port, or a URL. protocol is grpc,
// http or empty: then a URL means HTTP, host:port gRPC. With a URL the scheme
// says whether there is TLS; host:port has it unless insecure is set or the host
// is this machine's loopback.
func ParseEndpoint(text, protocol string, insecure bool) (Endpoint, error) {
	e := Endpoint{Protocol: protocol, Address: text}
	scheme, _, isURL := strings.Cut(text, "://")
	if e.Protocol == "" {
		e.Protocol = GRPC
		if isURL {
			e.Protocol = HTTP
		}
	}
	if e.Protocol != GRPC && e.Protocol != HTTP {
		return e, fmt.Errorf("the protocol %q is neither grpc nor http", protocol)
	}
	if isURL {
		u, err := url.Parse(text)
		switch {
		case err != nil:
			return e, fmt.Errorf("the URL can't be read") // it may hold a secret
		case scheme != "http" && scheme != "https":
			return e, fmt.Errorf("the scheme of the URL is neither http nor https")
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			return e, fmt.Errorf("a user, query or fragment has no place in the URL")
		case scheme == "https" && insecure:
			return e, fmt.Errorf("the URL says https, and STROMBOLI_TRACING_INSECURE no TLS: one of them is wrong")
		case e.Protocol == GRPC && strings.Trim(u.Path, "/") != "":
			return e, fmt.Errorf("gRPC takes no path")
		}
		e.Address, e.Path, e.Plain = u.Host, strings.TrimSuffix(u.Path, "/"), scheme == "http"
		if u.Port() == "" {
			e.Address = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[scheme])
		}
	}
	host, port, err := net.SplitHostPort(e.Address)
	if err != nil || host == "" || port == "" {
		return e, fmt.Errorf("%q is neither host:port nor an http or https URL", text)
	}
	if !isURL {
		e.Plain = insecure || loopback(host)
	}
	if e.Protocol == HTTP && !strings.HasSuffix(e.Path, tracesPath) {
		e.Path += tracesPath
	}
	return e, nil
}

// tracesPath is where an OTLP/HTTP receiver takes traces, below its base.
const tracesPath = "/v1/traces"

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
