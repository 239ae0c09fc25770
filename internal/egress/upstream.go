package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/tomblancdev/stromboli/internal/policy"
)

// UpstreamProxy is the proxy behind which this host stands.
type UpstreamProxy struct {
	// URL is http:// or https://, perhaps with a user and a password; empty:
	// none. The model's endpoint is reached through it by CONNECT, its TLS end
	// to end.
	URL string `json:"url,omitempty"`
	// NoProxy names hosts that are reached without it, as in curl.
	NoProxy string `json:"no_proxy,omitempty"`
}

// parentProxy is an UpstreamProxy made ready; nil is none.
type parentProxy struct {
	url   *url.URL
	pick  func(*url.URL) (*url.URL, error)
	hosts policy.Hosts // whom sandboxes reach through it; names only
}

func compileUpstream(p UpstreamProxy, hosts []string) (*parentProxy, error) {
	list, i, err := policy.ParseHosts(hosts)
	if err != nil {
		return nil, fmt.Errorf("proxy hosts: entry %d: %w", i+1, err)
	}
	if !list.OnlyNames() {
		return nil, errors.New("proxy hosts: an address has no place among them: what a proxy connects to can't be checked here, so sandboxes reach names by it, never addresses")
	}
	if p.URL == "" {
		if len(hosts) > 0 {
			return nil, errors.New("proxy hosts: there is no proxy")
		}
		return nil, nil //nolint:nilnil // none is a valid state
	}
	u, err := url.Parse(p.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return nil, errors.New("proxy: want http://host:port or https://host:port") // the text may hold a password
	}
	config := httpproxy.Config{HTTPSProxy: p.URL, HTTPProxy: p.URL, NoProxy: p.NoProxy}
	return &parentProxy{url: u, pick: config.ProxyFunc(), hosts: list}, nil
}

// modelProxy is the proxy of a request to the model.
func modelProxy(r *http.Request) (*url.URL, error) {
	f := flowOf(r.Context())
	if f == nil || f.settings == nil || f.settings.upstream == nil {
		return nil, nil //nolint:nilnil // what net/http takes for none
	}
	return f.settings.upstream.pick(r.URL) //nolint:wrapcheck // says all
}

// carries reports whether a sandbox's connection goes through the proxy.
func (u *parentProxy) carries(to target) bool {
	if u == nil || to.name == "" {
		return false
	}
	_, ok := u.hosts.Name(to.name, to.port)
	return ok
}

// proxied is a connection that the host's proxy leads on: its far end is the
// proxy, and where it leads is not known here.
type proxied struct{ streamConn }

// maxConnectAnswer bounds a proxy's answer to CONNECT.
const maxConnectAnswer = 16 << 10

// dial opens a tunnel to a target through the proxy. The name is the proxy's to
// resolve: only its own word says where it leads.
func (u *parentProxy) dial(ctx context.Context, d *net.Dialer, to target, roots *tls.Config) (streamConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	port := u.url.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.url.Scheme]
	}
	plain, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.url.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("the proxy: %w", err)
	}
	conn, ok := plain.(streamConn)
	if !ok {
		return nil, errors.Join(errors.New("the proxy: not a TCP connection"), plain.Close())
	}
	if u.url.Scheme == "https" {
		config := roots.Clone()
		config.ServerName = u.url.Hostname()
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("the proxy: %w", err), conn.Close())
		}
		conn = secure
	}
	if err := u.connect(ctx, conn, to); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return proxied{conn}, nil
}

func (u *parentProxy) connect(ctx context.Context, conn net.Conn, to target) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var auth string
	if user := u.url.User; user != nil {
		password, _ := user.Password()
		auth = "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", to, to, auth); err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	// Byte by byte: what follows the answer is the target's.
	var head strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
		if _, err := io.ReadFull(conn, b); err != nil {
			return fmt.Errorf("the proxy: %w", err)
		}
		head.Write(b)
		if head.Len() > maxConnectAnswer {
			return errors.New("the proxy: its answer has no end")
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(head.String())), &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // it has none
	if err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the proxy refuses %s: %s", to, resp.Status)
	}
	return nil
}
