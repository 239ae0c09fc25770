package egress

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// another is a second sandbox, with a client of its own.
func (f *fixture) another() func() int {
	f.Helper()
	socket := filepath.Join(shortDir(f.T), "n")
	reg := f.registration("neighbour")
	reg.Socket = socket
	if err := f.g.add(reg); err != nil {
		f.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, socket) }}
	f.Cleanup(tr.CloseIdleConnections)
	return func() int {
		f.Helper()
		req, err := http.NewRequestWithContext(f.Context(), http.MethodPost, "http://egress/v1/messages", strings.NewReader("{}"))
		if err != nil {
			f.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
		if err != nil {
			f.Error(err)
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
}

// TestSmuggling: whatever two readers could take for the border of two requests,
// no request passes that wasn't judged by itself: an upstream sees none that a
// sandbox hid in another.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	drain := func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	u := newUpstream(t, drain)
	open := newUpstream(t, drain)
	host := strings.TrimPrefix(open.URL, "http://")
	f := newFixture(t, Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}, Allow: []string{host}})
	hidden := "GET /smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	proxied := "GET http://" + host + "/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, headers := range map[string]string{
		"both lengths":           "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"both, the other first":  "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"two lengths":            "Content-Length: 0\r\nContent-Length: 60\r\n\r\n",
		"a length with a sign":   "Content-Length: +0\r\n\r\n",
		"two lengths in one":     "Content-Length: 0, 60\r\n\r\n",
		"an unknown encoding":    "Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n",
		"encoded twice":          "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"a tab before chunked":   "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"a space in the name":    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"a folded line":          "X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
		"a lone line feed":       "X: a\nTransfer-Encoding: chunked\n\n0\n\n",
		"a lone carriage return": "X: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a chunk with more":      "Transfer-Encoding: chunked\r\n\r\n0;x=\n\r\n\r\n",
		"a chunk's wrong size":   "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
		"a trailer":              "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 60\r\n\r\n",
		"two hosts":              "Host: y\r\nContent-Length: 0\r\n\r\n",
		"an upgrade":             "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
		"a hop of its own":       "Connection: Content-Length, Host\r\nContent-Length: 0\r\n\r\n",
	} {
		for _, target := range []string{"POST /v1/messages", "POST http://" + host + "/judged"} {
			// To the model's endpoint only its own paths pass, to another host what
			// names it by itself.
			c := f.dial()
			_, _ = io.WriteString(c, target+" HTTP/1.1\r\nHost: x\r\n"+headers+hidden)
			_ = c.CloseWrite()
			if _, err := io.ReadAll(c); err != nil {
				t.Errorf("%s: %s: the connection stays open: %v", target, name, err)
			}
		}
	}
	for who, up := range map[string]*upstream{"model": u, "host": open} {
		up.mu.Lock()
		if len(up.seen) == 0 {
			t.Errorf("the %s was asked nothing at all", who)
		}
		for _, r := range up.seen {
			if r.URL.Path != "/v1/messages" && r.URL.Path != "/judged" || len(r.TransferEncoding) > 0 && r.ContentLength > 0 {
				t.Errorf("the %s was asked for %s with %v", who, r.URL, r.Header)
			}
			if who == "host" && r.Host != host {
				t.Errorf("the host was asked as %q", r.Host)
			}
		}
		up.mu.Unlock()
	}
	// The control: by itself it passes, and is on record.
	if got := f.raw(proxied); !strings.Contains(got, "200") {
		t.Errorf("the hidden request by itself: %s", got)
	}
	if !slices.ContainsFunc(open.requests(), func(path string) bool { return path == "/smuggled" }) {
		t.Error("the control was not seen")
	}
}

// requests are the paths that were asked for.
func (u *upstream) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var paths []string
	for _, r := range u.seen {
		paths = append(paths, r.URL.Path)
	}
	return paths
}

// TestSlowBytes: who sends a request byte by byte is cut off when its headers
// are late, and a body that doesn't end holds nobody else.
func TestSlowBytes(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	f := newFixture(t, Config{ModelURL: u.URL}, func(g *gateway) { g.headers = 500 * time.Millisecond })
	neighbour := f.another()
	body := f.dial()
	_, _ = io.WriteString(body, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	drip := f.dial()
	cut := make(chan error, 1)
	go func() { _, err := io.ReadAll(drip); cut <- err }()
	request := "GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 1<<20)
	for i := range len(request) {
		if _, err := io.WriteString(drip, request[i:i+1]); err != nil {
			break
		}
		sleep(t.Context(), 5*time.Millisecond)
		if i > 3000 {
			t.Fatal("headers may come for ever")
		}
	}
	if err := <-cut; err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection was not ended: %v", err)
	}
	if got := neighbour(); got != http.StatusOK {
		t.Errorf("a neighbour got %d", got)
	}
	_ = body.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := body.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("the slow body was cut off, as an agent's would be whose request is large: %v", err)
	}
}

// TestThousandConnections: one sandbox holds a thousand connections with half a
// request on each; another's are answered.
func TestThousandConnections(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	// However long it takes to open them all, none is cut off for its headers.
	f := newFixture(t, Config{ModelURL: u.URL}, func(g *gateway) { g.headers = 10 * time.Minute })
	flood := f.g.list()[0]
	neighbour := f.another()
	many := make([]net.Conn, 1000)
	for i := range many {
		c := f.dial()
		_, _ = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\n")
		many[i] = c
	}
	eventually(t, "a thousand connections", func() bool { return flood.open() == len(many) })
	for range 20 {
		if got := neighbour(); got != http.StatusOK {
			t.Fatalf("a neighbour got %d", got)
		}
	}
	for _, c := range many {
		_ = c.Close()
	}
	eventually(t, "the connections' end", func() bool { return flood.open() == 0 })
}

// TestSlowUpstream: a model that takes its time is waited for, and the wait ends
// with the sandbox's connection.
func TestSlowUpstream(t *testing.T) {
	t.Parallel()
	asked, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	u := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		asked <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	defer u.Close()
	f := newFixture(t, Config{ModelURL: u.URL})
	c := f.dial()
	_, _ = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	<-asked
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("an answer that nobody gave: %d bytes, %v", n, err)
	}
	_ = c.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the request to the upstream goes on without its sandbox")
	}
}
