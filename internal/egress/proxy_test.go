package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// echo is a TCP server that sends back what it gets, and at its client's end
// of file a last word.
func echo(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.Copy(c, c)
				_, _ = io.WriteString(c, "bye")
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func TestConnect(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	f := newFixture(t, Config{Allow: []string{addr}})
	c := f.dial()
	// Bytes that come with the request are part of the tunnel.
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: other.example\r\n\r\nearly", addr)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	go func() {
		_, _ = c.Write(big)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(r)
	want := append(append([]byte("early"), big...), "bye"...)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	eventually(t, "the slot is given back", func() bool { return f.g.list()[0].open() == 0 })
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	_, port, _ := net.SplitHostPort(addr)
	f := newFixture(t, Config{}, resolving(map[string][]string{"mixed.example": {"1.1.1.1", "127.0.0.1"}, "local.example": {"127.0.0.1"}}),
		func(g *gateway) { g.dialer.transport.ControlContext = refuseEveryDial(t) })
	for _, host := range []string{
		"127.0.0.1", "[::1]", "0.0.0.0", "[::]", "localhost.", "2130706433", "0x7f.1", "mixed.example", "local.example", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
		"169.254.169.254", "168.63.129.16", "[fd00:ec2::254]", "10.0.0.1",
	} {
		for _, text := range []string{
			"CONNECT " + host + ":" + port + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET http://" + host + ":" + port + "/ HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n",
		} {
			want := "403"
			if host == "localhost." {
				want = "502" // resolved by the fake: not at all
			}
			if got := f.raw(text); !strings.Contains(got, want) {
				t.Errorf("%q: %s", text, got)
			}
		}
	}
	huge := "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n"
	for _, c := range []struct{ text, want string }{
		{"CONNECT /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", "403"},
		{"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", "403"},
		{"CONNECT 1.1.1.1:99999 HTTP/1.1\r\nHost: x\r\n\r\n", "40"},
		{"GET https://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400"},
		{"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", "501"},
		{"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello", "400"},
		{"GET / HTTP/1.1\r\n\r\n", "400"},
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		{huge, "431"},
	} {
		if got := f.raw(c.text); !strings.Contains(got, c.want) {
			t.Errorf("%.60q: %s, want %s", c.text, got, c.want)
		}
	}
}

// TestRefusalKeepsNames: a sandbox doesn't learn what a name of the host's
// network resolves to.
func TestRefusalKeepsNames(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{}, resolving(map[string][]string{"db.internal": {"10.20.30.40"}}))
	c := f.dial()
	_, _ = io.WriteString(c, "CONNECT db.internal:5432 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	got, _ := io.ReadAll(c)
	if !bytes.Contains(got, []byte("403")) || bytes.Contains(got, []byte("10.20.30.40")) {
		t.Errorf("%s", got)
	}
}

// TestOneConnectionForAll: model and proxy requests take turns on one
// kept-alive connection, and each gets only what is its own.
func TestOneConnectionForAll(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })
	f := newFixture(t, Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}, Allow: []string{strings.TrimPrefix(u.URL, "http://")}})
	c := f.dial()
	r := bufio.NewReader(c)
	for i := range 3 {
		for _, target := range []string{"/v1/messages", u.URL + "/plain"} {
			_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: wrong.example\r\nX-Api-Key: placeholder\r\nContent-Length: 2\r\n\r\nhi", target)
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			got := u.last(t)
			wantKey, wantPath := "placeholder", "/plain"
			if target[0] == '/' {
				wantKey, wantPath = "sk-real", "/v1/messages"
			}
			if string(body) != wantPath || got.Header.Get("X-Api-Key") != wantKey || "http://"+got.Host != u.URL {
				t.Errorf("%s: %s, %v", target, body, got.Header)
			}
		}
	}
}

func TestPreamble(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	const request = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
	for name, c := range map[string]struct {
		reg  func(*Sandbox)
		line string
		want bool
	}{
		"right":         {func(*Sandbox) {}, "STROMBOLI/1 " + testToken + "\n", true},
		"wrong token":   {func(*Sandbox) {}, "STROMBOLI/1 " + strings.Repeat("x", 32) + "\n", false},
		"shorter token": {func(*Sandbox) {}, "STROMBOLI/1 " + testToken[:31] + "\n", false},
		"longer token":  {func(*Sandbox) {}, "STROMBOLI/1 " + testToken + "x\n", false},
		"other version": {func(*Sandbox) {}, "STROMBOLI/2 " + testToken + "\n", false},
		"none":          {func(*Sandbox) {}, "", false},
		"other uid":     {func(s *Sandbox) { s.PeerUID++ }, "STROMBOLI/1 " + testToken + "\n", false},
		"any but us":    {func(s *Sandbox) { s.HasPeerUID, s.HasNotUID, s.NotUID = false, true, ownUID() }, "STROMBOLI/1 " + testToken + "\n", false},
		"any but other": {func(s *Sandbox) { s.HasPeerUID, s.HasNotUID, s.NotUID = false, true, ownUID()+1 }, "STROMBOLI/1 " + testToken + "\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, Config{ModelURL: u.URL})
			reg := f.registration("a")
			c.reg(&reg)
			if err := f.g.add(reg); err != nil {
				t.Fatal(err)
			}
			conn, err := unixsock.Dial(t.Context(), f.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(conn, c.line+request) // fails where it was refused at once
			got, _ := io.ReadAll(conn)
			if bytes.HasPrefix(got, []byte("HTTP/1.1 200")) != c.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestPeerBecomesKnown: a connection that comes before the uid is known waits,
// and the registration that names it lets it in.
func TestPeerBecomesKnown(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	f := newFixture(t, Config{ModelURL: u.URL})
	f.socket = filepath.Join(shortDir(t), "b")
	reg := f.registration("b")
	reg.HasPeerUID = false
	if err := f.g.add(reg); err != nil {
		t.Fatal(err)
	}
	c := f.dial()
	_, _ = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Fatal("answered before the peer was known")
	}
	reg.HasPeerUID = true
	if err := f.g.add(reg); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(c); !bytes.HasPrefix(got, []byte("HTTP/1.1 200")) {
		t.Errorf("%q, %v", got, err)
	}
}

// TestManyConnections: one sandbox's flood waits by itself; another one is served.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	f := newFixture(t, Config{ModelURL: u.URL}, func(g *gateway) { g.maxConns = 20 })
	for range 60 {
		f.dial()
	}
	first := f.g.list()[0]
	eventually(t, "the slots are full", func() bool { return first.open() == 20 })
	other := filepath.Join(shortDir(t), "c")
	if err := f.g.add(Sandbox{ID: "c", Socket: other, Token: testToken, PeerUID: ownUID(), HasPeerUID: true, Network: openNetwork()}); err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, other) },
	}}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://egress/v1/messages", strings.NewReader("{}"))
	resp, err := c.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if n := first.open(); n != 20 {
		t.Errorf("%d connections of the first sandbox, want 20", n)
	}
}

// TestRemoveEndsConnections: nothing of a removed sandbox goes on.
func TestRemoveEndsConnections(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	f := newFixture(t, Config{Allow: []string{addr}})
	c := f.dial()
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", addr)
	if _, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect}); err != nil {
		t.Fatal(err)
	}
	f.g.remove("a")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel lives on")
	}
	f.g.remove("a")
	if ids, n := f.g.sandboxes(); len(ids) != 0 || n != 0 {
		t.Errorf("left: %v, %d connections", ids, n)
	}
}

func TestTunnelIdle(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	f := newFixture(t, Config{Allow: []string{addr}}, func(g *gateway) { g.idle = 400 * time.Millisecond })
	c := f.dial()
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", addr)
	r := bufio.NewReader(c)
	if _, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}); err != nil {
		t.Fatal(err)
	}
	for range 8 { // longer than idle in all, but never silent for so long
		sleep(t.Context(), 100*time.Millisecond)
		_, _ = c.Write([]byte("x"))
		if _, err := r.ReadByte(); err != nil {
			t.Fatalf("cut while it was in use: %v", err)
		}
	}
	start := time.Now()
	if _, err := r.ReadByte(); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("after silence: %v in %v", err, time.Since(start))
	}
}
