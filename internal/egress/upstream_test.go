package egress

import (
	"crypto/x509"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// corporate is a proxy that takes CONNECT with a password and leads every name
// to one place, as a resolver of its own may.
type corporate struct {
	*httptest.Server
	leads string

	mu    sync.Mutex
	asked []string
}

func newCorporate(t *testing.T, leads string) *corporate {
	t.Helper()
	c := &corporate{leads: leads}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *corporate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.asked = append(c.asked, r.Method+" "+r.Host)
	c.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("user:pass")) {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	up, err := net.Dial("tcp", c.leads)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	down, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		_ = up.Close()
		return
	}
	_, _ = io.WriteString(down, "HTTP/1.1 200 Fine\r\nX: y\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, down)
		_ = up.Close()
	}()
	_, _ = io.Copy(down, up)
	_ = down.Close()
}

func (c *corporate) seen() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.asked, " ")
}

func (c *corporate) as(user string) string {
	return strings.Replace(c.URL, "http://", "http://"+user+"@", 1)
}

func TestModelBehindProxy(t *testing.T) {
	t.Parallel()
	u := &upstream{}
	u.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "key "+r.Header.Get("X-Api-Key"))
	}))
	t.Cleanup(u.Close)
	proxy := newCorporate(t, u.Listener.Addr().String())
	roots := x509.NewCertPool()
	roots.AddCert(u.Certificate())
	trust := func(g *gateway) { g.model.TLSClientConfig.RootCAs = roots }
	config := func(user string) Config {
		return Config{ModelURL: "https://example.com", Credential: Credential{APIKey, "sk-real"}, Proxy: UpstreamProxy{URL: proxy.as(user)}}
	}
	f := newFixture(t, config("user:pass"), trust)
	if resp := f.post("/v1/messages", nil); resp.StatusCode != 200 || text(t, resp) != "key sk-real" || proxy.seen() != "CONNECT example.com:443" {
		t.Errorf("%d, the proxy saw %s", resp.StatusCode, proxy.seen())
	}
	f = newFixture(t, config("user:wrong"), trust)
	if resp := f.post("/v1/messages", nil); resp.StatusCode != 502 || strings.Contains(text(t, resp), "wrong") {
		t.Errorf("a wrong password: %d", resp.StatusCode)
	}
	f = newFixture(t, config("user:pass")) // the proxy's word for a certificate counts nothing
	if resp := f.post("/v1/messages", nil); resp.StatusCode != 502 || !strings.Contains(text(t, resp), "certificate") {
		t.Errorf("an unknown certificate: %d", resp.StatusCode)
	}
	direct := config("user:pass")
	direct.Proxy.NoProxy = "example.com"
	direct.ModelURL = u.URL
	f = newFixture(t, direct, trust)
	before := proxy.seen()
	if resp := f.post("/v1/messages", nil); resp.StatusCode != 200 || proxy.seen() != before {
		t.Errorf("without the proxy: %d", resp.StatusCode)
	}
}

// TestHostsBehindProxy: only names that configuration gives go through it.
func TestHostsBehindProxy(t *testing.T) {
	t.Parallel()
	proxy := newCorporate(t, echo(t))
	f := newFixture(t, Config{Proxy: UpstreamProxy{URL: proxy.as("user:pass")}, ProxyHosts: []string{"*.example"}},
		resolving(map[string][]string{"a.example": {"127.0.0.1"}, "other.test": {"127.0.0.1"}}))
	for to, want := range map[string]string{"a.example:443": "200", "other.test:443": "403", "127.0.0.1:443": "403", "10.0.0.1:443": "403"} {
		if got := f.raw("CONNECT " + to + " HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
	if got := proxy.seen(); got != "CONNECT a.example:443" {
		t.Errorf("the proxy saw %s", got)
	}
	// The proxy's own address is not the host's: lists of addresses don't meet it.
	f.reach(stromboli.Network{Mode: stromboli.NetworkOpen, Deny: []string{"127.0.0.0/8"}})
	if got := f.raw("CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.Contains(got, "200") {
		t.Errorf("with the proxy's address denied: %s", got)
	}
	f.reach(stromboli.Network{Mode: stromboli.NetworkOpen, Deny: []string{"a.example"}})
	if got := f.raw("CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.Contains(got, "403") {
		t.Errorf("with the name denied: %s", got)
	}
	for _, bad := range []Config{
		{Proxy: UpstreamProxy{URL: "socks5://x:1"}},
		{Proxy: UpstreamProxy{URL: "http://"}},
		{ProxyHosts: []string{"a.example"}},
		{Proxy: UpstreamProxy{URL: "http://p:1"}, ProxyHosts: []string{"10.0.0.0/8"}},
		{Proxy: UpstreamProxy{URL: "http://p:1"}, ProxyHosts: []string{"*"}},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}
