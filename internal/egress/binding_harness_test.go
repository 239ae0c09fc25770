package egress

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// testAuthority signs certificates.
type testAuthority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *testAuthority {
	t.Helper()
	a := &testAuthority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = a.sign(template, nil, nil)
	return a
}

func (a *testAuthority) sign(template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue makes a certificate for names, valid until then.
func (a *testAuthority) issue(until time.Time, names ...string) tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *testAuthority) identity(names ...string) Identity {
	a.t.Helper()
	cert := a.issue(time.Now().Add(time.Hour), names...)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	return Identity{
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		Key:         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	}
}

func (a *testAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *testAuthority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// startTLS serves with one certificate; it returns the port.
func startTLS(t *testing.T, s *httptest.Server, cert tls.Certificate) string {
	t.Helper()
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// boundFixture is a sandbox of which git.example is bound, and two hosts:
// git.example and other.example, which only passes through.
type boundFixture struct {
	*fixture
	world, inside *testAuthority // of the hosts; of the sandbox
	git           *upstream
	to            string // git.example with its port
	other         string // other.example with the same one
}

const boundSecret = "Bearer the-real-secret"

func newBoundFixture(t *testing.T, h http.HandlerFunc, change ...func(*gateway)) *boundFixture {
	t.Helper()
	f := &boundFixture{world: newAuthority(t), inside: newAuthority(t), git: &upstream{}}
	f.git.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.git.mu.Lock()
		f.git.seen = append(f.git.seen, r.Clone(r.Context()))
		f.git.mu.Unlock()
		h(w, r)
	}))
	port := startTLS(t, f.git.Server, f.world.issue(time.Now().Add(time.Hour), "git.example", "other.example"))
	f.to, f.other = "git.example:"+port, "other.example:"+port
	change = append(change, resolving(map[string][]string{"git.example": {"127.0.0.1"}, "other.example": {"127.0.0.1"}}),
		func(g *gateway) { g.model.TLSClientConfig.RootCAs = f.world.pool() })
	f.fixture = newFixture(t, Config{Allow: []string{f.to, f.other}}, change...)
	f.bind(Binding{To: f.to, Header: "Authorization", Value: boundSecret})
	return f
}

func (f *boundFixture) bind(list ...Binding) {
	f.Helper()
	f.bindWithin(openNetwork(), list...)
}

func (f *boundFixture) bindWithin(n stromboli.Network, list ...Binding) {
	f.Helper()
	reg := f.registration("a")
	reg.Network, reg.Bindings, reg.Identity = n, list, f.inside.identity("git.example")
	if err := f.g.add(reg); err != nil {
		f.Fatal(err)
	}
}

// tool is a client of the sandbox that trusts the sandbox's authority alone, or
// another one.
func (f *boundFixture) tool(trust *testAuthority) *http.Client {
	transport := &http.Transport{
		DialContext:     f.proxy.Transport.(*http.Transport).DialContext,
		Proxy:           func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: "egress"}, nil },
		TLSClientConfig: &tls.Config{RootCAs: trust.pool()}, DisableCompression: true,
	}
	f.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// tunnel opens a CONNECT by hand; first is sent along with it.
func (f *boundFixture) tunnel(to string) (net.Conn, string) {
	f.Helper()
	c := f.dial()
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", to); err != nil {
		f.Fatal(err)
	}
	// Byte by byte: what follows the answer is TLS.
	var head strings.Builder
	for b := make([]byte, 1); !strings.HasSuffix(head.String(), "\r\n\r\n"); head.Write(b) {
		if _, err := c.Read(b); err != nil {
			return c, "error: " + err.Error()
		}
	}
	line, _, _ := strings.Cut(head.String(), "\r\n")
	return c, line
}

// talk is a tunnel with TLS in it.
func (f *boundFixture) talk(to string) *tls.Conn {
	f.Helper()
	c, status := f.tunnel(to)
	if !strings.Contains(status, " 200 ") {
		f.Fatal(status)
	}
	secure := tls.Client(c, &tls.Config{RootCAs: f.inside.pool(), ServerName: "git.example"})
	if err := secure.HandshakeContext(f.Context()); err != nil {
		f.Fatal(err)
	}
	return secure
}

// say sends text on an opened connection of its own and returns all status lines
// that come back.
func (f *boundFixture) say(text string) []string {
	f.Helper()
	c := f.talk(f.to)
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(text)); err != nil {
		f.Fatal(err)
	}
	var lines []string
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return lines
		}
		lines = append(lines, resp.Status)
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.Close {
			return lines
		}
	}
}
