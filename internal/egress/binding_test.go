package egress

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// TestBindingShowsSecret: each request to the bound host has the secret in place
// of what the sandbox sent; what is not the host's own stays as it was.
func TestBindingShowsSecret(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Set-Cookie", "session=of-the-secret")
		w.Header().Set("Location", "https://other.example/elsewhere")
		w.WriteHeader(http.StatusFound)
		_, _ = fmt.Fprintf(w, "%s %s", r.Method, body)
	})
	tool := f.tool(f.inside)
	const target = "/a%2Fb/../info/refs?service=git-upload-pack&odd;pair&x=%zz"
	for _, binding := range []Binding{
		{To: f.to, Header: "Authorization", Value: boundSecret},
		{To: f.to, Header: "PRIVATE-TOKEN", Value: "the-real-secret"},
	} {
		f.bind(binding)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+f.to+"/", strings.NewReader("pack"))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = target
		for name, value := range map[string]string{
			"Authorization": "Basic mine", "Cookie": "mine=1", "Proxy-Authorization": "Basic mine", "Private-Token": "mine",
			"Connection": "Authorization, Private-Token", "Git-Protocol": "version=2", "X-Forwarded-For": "192.0.2.1",
		} {
			req.Header.Set(name, value)
		}
		req.Header["PRIVATE_TOKEN"], req.Header["authorization"] = []string{"mine"}, []string{"mine"}
		resp, err := tool.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got := text(t, resp)
		_ = resp.Body.Close()
		if resp.StatusCode != 302 || got != "POST pack" || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("Location") == "" {
			t.Errorf("%d %q %v", resp.StatusCode, got, resp.Header)
		}
		seen := f.git.last(t)
		if seen.RequestURI != target || seen.Host != f.to || seen.Header.Get("Git-Protocol") != "version=2" || seen.ContentLength != 4 {
			t.Errorf("the host saw %s %s %v", seen.Host, seen.RequestURI, seen.Header)
		}
		for name, values := range seen.Header {
			bound := strings.EqualFold(name, binding.Header)
			others := strings.HasPrefix(name, "Private") && binding.Header == "Authorization" // its own business
			if !bound && !others && strings.Contains(strings.Join(values, " "), "mine") || bound && !slices.Equal(values, []string{binding.Value}) {
				t.Errorf("the host saw %s: %q", name, values)
			}
		}
	}
	tool.CloseIdleConnections()
	rec := f.records(1)[0]
	if rec.Kind != kindBinding || rec.Host != "git.example" || rec.Verdict != stromboli.EgressAllowed || rec.Why != "" || rec.Sent < 500 || rec.Received < 500 || rec.Address != "127.0.0.1" {
		t.Errorf("%+v", rec)
	}
}

// TestBindingOfOneHost: other hosts pass through as they are, with their own
// certificate and without the secret; so does the bound one at another port.
func TestBindingOfOneHost(t *testing.T) {
	t.Parallel()
	hello := func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("Authorization")) }
	f := newBoundFixture(t, hello)
	second := httptest.NewUnstartedServer(http.HandlerFunc(hello))
	port := startTLS(t, second, f.world.issue(time.Now().Add(time.Hour), "git.example"))
	plain := newUpstream(t, hello)
	_, plainPort, _ := net.SplitHostPort(plain.Listener.Addr().String())
	if err := f.g.configure(Config{Allow: []string{f.to, f.other, "git.example:" + port, "git.example:" + plainPort}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to    string
		trust *testAuthority
		want  string
	}{
		{"https://" + f.to, f.inside, boundSecret},
		{"https://" + f.other, f.world, "mine"},
		{"https://git.example:" + port, f.world, "mine"},
		{"http://git.example:" + plainPort, f.world, "mine"}, // never in the clear
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "mine")
		resp, err := f.tool(c.trust).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, resp); got != c.want {
			t.Errorf("%s: %q", c.to, got)
		}
		if resp.TLS != nil && c.trust == f.world && !resp.TLS.PeerCertificates[0].Equal(serverCert(t, f, c.to, port, second)) {
			t.Errorf("%s: another certificate than the host's", c.to)
		}
		_ = resp.Body.Close()
	}
	// In the clear to the bound host and port itself: nothing is shown either.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+f.to, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.tool(f.inside).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, resp); strings.Contains(got, "real-secret") || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("in the clear: %d %q", resp.StatusCode, got)
	}
	_ = resp.Body.Close()
}

func serverCert(t *testing.T, f *boundFixture, to, port string, second *httptest.Server) *x509.Certificate {
	t.Helper()
	if strings.HasSuffix(to, ":"+port) {
		return second.TLS.Certificates[0].Leaf
	}
	return f.git.TLS.Certificates[0].Leaf
}

// TestBindingVerifies: a host that can't prove who it is isn't shown the secret,
// and the sandbox is told why; nothing falls back to unverified or unbound.
func TestBindingVerifies(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(http.ResponseWriter, *http.Request) {})
	asked := make(chan struct{}, 10)
	for name, cert := range map[string]tls.Certificate{
		"expired":    f.world.issue(time.Now().Add(-time.Minute), "git.example"),
		"other name": f.world.issue(time.Now().Add(time.Hour), "other.example"),
		"of nobody":  newAuthority(t).issue(time.Now().Add(time.Hour), "git.example"),
		"our own":    f.inside.issue(time.Now().Add(time.Hour), "git.example"),
	} {
		host := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
		host.Config.ErrorLog = log.New(io.Discard, "", 0)
		to := "git.example:" + startTLS(t, host, cert)
		if err := f.g.configure(Config{Allow: []string{to}}); err != nil {
			t.Fatal(err)
		}
		f.bind(Binding{To: to, Header: "Authorization", Value: boundSecret})
		if _, status := f.tunnel(to); !strings.Contains(status, " 502 ") {
			t.Errorf("%s: %s", name, status)
		}
	}
	for _, rec := range f.records(4) {
		if rec.Kind != kindBinding || rec.Verdict != stromboli.EgressFailed || !strings.Contains(rec.Why, "certificate") {
			t.Errorf("%+v", rec)
		}
	}
	if len(asked) > 0 {
		t.Error("a host that proved nothing was asked")
	}
	// Down, and refused by its address.
	f.bind(Binding{To: "git.example:1", Header: "Authorization", Value: boundSecret})
	if _, status := f.tunnel("git.example:1"); !strings.Contains(status, " 403 ") {
		t.Errorf("an address that isn't public: %s", status)
	}
	if err := f.g.configure(Config{Allow: []string{"git.example:1"}}); err != nil {
		t.Fatal(err)
	}
	if _, status := f.tunnel("git.example:1"); !strings.Contains(status, " 502 ") {
		t.Errorf("a host that is down: %s", status)
	}
}

// TestBindingMisdirected: a connection to a bound host leads to no other, by
// whatever name.
func TestBindingMisdirected(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(http.ResponseWriter, *http.Request) {})
	for text, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: " + f.to + "\r\nConnection: close\r\n\r\n":                                                  "200",
		"GET / HTTP/1.1\r\nHost: GIT.example.:" + strings.TrimPrefix(f.to, "git.example:") + "\r\nConnection: close\r\n\r\n": "200",
		"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n":                                                                      "421",
		"GET / HTTP/1.1\r\nHost: git.example\r\n\r\n":                                                                        "421", // the default port is another
		"GET / HTTP/1.1\r\nHost: " + f.other + "\r\n\r\n":                                                                    "421",
		"GET https://" + f.other + "/ HTTP/1.1\r\nHost: " + f.to + "\r\n\r\n":                                                "421",
		"GET / HTTP/1.0\r\n\r\n": "421",
		"TRACE / HTTP/1.1\r\nHost: " + f.to + "\r\nConnection: close\r\n\r\n":              "405",
		"CONNECT " + f.to + " HTTP/1.1\r\nHost: " + f.to + "\r\nConnection: close\r\n\r\n": "405",
	} {
		if got := f.say(text); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%q: %v, want %s", text, got, want)
		}
	}
	if n := len(f.git.seen); n != 2 {
		t.Errorf("the host saw %d requests", n)
	}
	c, status := f.tunnel(f.to)
	if !strings.Contains(status, " 200 ") {
		t.Fatal(status)
	}
	other := tls.Client(c, &tls.Config{RootCAs: f.inside.pool(), ServerName: "other.example"})
	if err := other.HandshakeContext(t.Context()); err == nil {
		t.Error("another name was served")
	}
	// What isn't TLS, and nothing at all.
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SSH-2.0-x\r\n", "\x16\x03\x01\xff\xff garbage"} {
		c, _ := f.tunnel(f.to)
		_, _ = io.WriteString(c, text)
		if cw, ok := c.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		}
		_, _ = io.ReadAll(c)
	}
	for _, rec := range f.records(13)[10:] {
		if rec.Verdict != stromboli.EgressFailed || !strings.Contains(rec.Why, "TLS") {
			t.Errorf("%+v", rec)
		}
	}
}

// TestBindingFrames: requests that different programs read differently reach the
// host as one or not at all, and each that does shows the secret alone.
func TestBindingFrames(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	hidden := "GET /hidden HTTP/1.1\r\nHost: " + f.to + "\r\nAuthorization: mine\r\n\r\n"
	head := "POST /front HTTP/1.1\r\nHost: " + f.to + "\r\nConnection: close\r\n"
	for _, text := range []string{
		head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		head + "Content-Length: 0\r\nContent-Length: " + fmt.Sprint(len(hidden)) + "\r\n\r\n" + hidden,
		head + "Content-Length: 0, " + fmt.Sprint(len(hidden)) + "\r\n\r\n" + hidden,
		head + "Content-Length: +0\r\n\r\n" + hidden,
		head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden,
		head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden,
		head + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		head + "Content-Length: 0\r\n X: y\r\n\r\n" + hidden,
		head + "X: y\rContent-Length: 3\r\n\r\n" + hidden,
		head + "Transfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: mine\r\n\r\n" + hidden,
		head + "Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n0\r\nAuthorization: mine\r\n\r\n",
		head + "X: " + strings.Repeat("x", 128<<10) + "\r\n\r\n" + hidden,
		"GET /front HTTP/1.1\r\nHost: " + f.to + "\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n" + hidden,
	} {
		if got := f.say(text); len(got) > 1 {
			t.Errorf("%.200q got %v", text, got)
		}
	}
	f.git.mu.Lock()
	defer f.git.mu.Unlock()
	for _, r := range f.git.seen {
		if r.URL.Path != "/front" || !slices.Equal(r.Header.Values("Authorization"), []string{boundSecret}) || r.Trailer.Get("Authorization") != "" || r.Header.Get("Upgrade") != "" {
			t.Errorf("the host saw %s %v %v", r.URL, r.Header, r.Trailer)
		}
	}
	if len(f.git.seen) == 0 {
		t.Error("the control did not reach the host")
	}
}

// TestBindingStreams: each piece of a request and of its answer arrives before
// the next one is made.
func TestBindingStreams(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		lines := bufio.NewReader(r.Body)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "got "+line)
			_ = http.NewResponseController(w).Flush()
		}
	})
	c := f.talk(f.to)
	defer func() { _ = c.Close() }()
	_, _ = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", f.to)
	_, _ = io.WriteString(c, "4\r\none\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(resp.Body)
	for _, next := range []string{"4\r\ntwo\n\r\n", "6\r\nthree\n\r\n", "0\r\n\r\n"} {
		line, err := lines.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "got ") {
			t.Fatalf("%q, %v", line, err)
		}
		_, _ = io.WriteString(c, next)
	}
	if rest, err := io.ReadAll(lines); err != nil || string(rest) != "" {
		t.Errorf("the end: %q, %v", rest, err)
	}
}

// TestBindingChanges: another secret is shown from the next request on, on open
// connections too; without one nothing is asked; a network that no more permits
// the host cuts, and bindings come back with it.
func TestBindingChanges(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	f := newBoundFixture(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	})
	defer close(hold)
	tool := f.tool(f.inside)
	get := func(path string) (string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+f.to+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tool.Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		return fmt.Sprint(resp.StatusCode, " ", text(t, resp)), nil
	}
	if got, err := get("/"); got != "200 "+boundSecret {
		t.Errorf("%q, %v", got, err)
	}
	f.bind(Binding{To: f.to, Header: "Authorization", Value: "Bearer another"})
	if got, err := get("/"); got != "200 Bearer another" {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(f.records(0)); n != 0 {
		t.Errorf("%d connections ended", n)
	}
	gone := Binding{To: f.to, Fault: "the secret git was deleted"}
	f.bind(gone)
	if got, err := get("/"); err == nil && !strings.HasPrefix(got, "403 ") {
		t.Errorf("without the secret, on an open connection: %q, %v", got, err)
	}
	if _, err := get("/"); err == nil || !strings.Contains(err.Error(), "Forbidden") {
		t.Errorf("without the secret: %v", err)
	}
	f.bind(Binding{To: f.to, Header: "Authorization", Value: boundSecret})
	held := make(chan error, 1)
	go func() {
		_, err := get("/hold")
		held <- err
	}()
	eventually(t, "the request is at the host", func() bool {
		f.git.mu.Lock()
		defer f.git.mu.Unlock()
		return f.git.seen[len(f.git.seen)-1].URL.Path == "/hold"
	})
	f.bindWithin(stromboli.Network{Mode: stromboli.NetworkModel}, Binding{To: f.to, Header: "Authorization", Value: boundSecret})
	if err := <-held; err == nil {
		t.Error("a connection that isn't permitted any more went on")
	}
	if _, err := get("/"); err == nil {
		t.Error("the host is reached against the network")
	}
	f.bind(Binding{To: f.to, Header: "Authorization", Value: boundSecret})
	if got, err := get("/"); got != "200 "+boundSecret {
		t.Errorf("%q, %v", got, err)
	}
}
