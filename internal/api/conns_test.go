package api_test

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

// dial opens a connection from an address of this machine's and sends bytes.
func dial(t *testing.T, from, to, bytes string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, bytes); err != nil {
		t.Fatal(err)
	}
	return c
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n" }

// reply reads one answer.
func reply(t *testing.T, c net.Conn) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal("no answer:", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// TestConnectionCaps: connections above a cap are told so, health is answered
// all the same, and a place that is given up is another's.
func TestConnectionCaps(t *testing.T) {
	s := start(t, func(c *api.Config) { c.MaxConnections, c.MaxPerAddress = 4, 3 })
	path := "/jobs/" + stromboli.JobID(submitted(t, s)) + "/stream"
	s.hc.CloseIdleConnections()
	watch := "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
	hold := func(from string) net.Conn {
		c := dial(t, from, s.addr, watch)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
			t.Fatalf("%q %v", line, err)
		}
		return c
	}
	first := hold("127.0.0.1")
	hold("127.0.0.1")
	hold("127.0.0.1")
	full := func(from string) {
		t.Helper()
		resp, body := reply(t, dial(t, from, s.addr, get("/jobs")))
		if resp.StatusCode != 503 || !strings.Contains(body, `"code":"too_many_connections"`) || resp.Header.Get("Retry-After") == "" || !resp.Close {
			t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
		for _, probe := range []string{"/health", "/livez", "/readyz"} {
			if resp, body := reply(t, dial(t, from, s.addr, get(probe))); resp.StatusCode != 200 || !resp.Close {
				t.Errorf("%s: %d %s", probe, resp.StatusCode, body)
			}
		}
	}
	full("127.0.0.1")
	hold("127.0.0.2") // another address has its own places, until there is none at all
	full("127.0.0.3")
	_ = first.Close()
	eventually(t, "a place to be free", func() bool {
		resp, _ := reply(t, dial(t, "127.0.0.1", s.addr, get("/jobs")))
		return resp.StatusCode == 200
	})
}

// TestIdleMakesWay: connections that only wait are no reason to refuse others.
func TestIdleMakesWay(t *testing.T) {
	s := start(t, func(c *api.Config) { c.MaxConnections, c.MaxPerAddress = 10, 2 })
	var all []net.Conn
	for range 6 {
		// A connection is idle a moment after its answer has come: until then it
		// makes no way.
		eventually(t, "a place for one more", func() bool {
			c := dial(t, "127.0.0.1", s.addr, get("/jobs"))
			all = append(all, c)
			resp, _ := reply(t, c)
			return resp.StatusCode == 200 && !resp.Close
		})
	}
	if _, err := all[0].Read(make([]byte, 1)); err == nil {
		t.Error("the one that waited longest is still open")
	}
}

// TestFlood: whoever opens connections and says nothing, or very slowly, keeps
// nobody from looking at the server's health, and not for long from the rest.
func TestFlood(t *testing.T) {
	s := start(t, func(c *api.Config) {
		c.MaxConnections, c.MaxPerAddress, c.HeaderTimeout = 20, 10, 2*time.Second
	})
	for range 200 {
		dial(t, "127.0.0.1", s.addr, "GET /jobs HTTP/1.1\r\nHo")
	}
	if resp, body := reply(t, dial(t, "127.0.0.1", s.addr, get("/health"))); resp.StatusCode != 200 {
		t.Errorf("health: %d %s", resp.StatusCode, body)
	}
	if resp, body := reply(t, dial(t, "127.0.0.2", s.addr, get("/jobs"))); resp.StatusCode != 200 {
		t.Errorf("another address: %d %s", resp.StatusCode, body)
	}
	eventually(t, "the flood to be over", func() bool {
		resp, _ := reply(t, dial(t, "127.0.0.1", s.addr, get("/jobs")))
		return resp.StatusCode == 200
	})
}

// TestSlowHeader: a header that comes byte by byte is cut off, however often
// one comes. With more time it would have been answered.
func TestSlowHeader(t *testing.T) {
	for _, c := range []struct {
		limit    time.Duration
		answered bool
	}{{150 * time.Millisecond, false}, {time.Minute, true}} {
		s := start(t, func(cfg *api.Config) { cfg.HeaderTimeout = c.limit })
		conn := dial(t, "127.0.0.1", s.addr, "")
		var writer sync.WaitGroup
		writer.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for _, b := range []byte(get("/livez")) { // 400 ms
				<-tick.C
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
			}
		})
		got, _ := io.ReadAll(io.LimitReader(conn, 12))
		if strings.HasPrefix(string(got), "HTTP/1.1 200") != c.answered {
			t.Errorf("with %s: %q", c.limit, got)
		}
		_ = conn.Close()
		writer.Wait()
	}
}

// TestSlowReader: a client that follows a stream and reads nothing of it loses
// its connection, and nobody else notices.
func TestSlowReader(t *testing.T) {
	s := start(t, func(c *api.Config) { c.MaxPerAddress, c.WriteTimeout = 1, 200*time.Millisecond })
	id := submitted(t, s)
	s.hc.CloseIdleConnections()
	for range 200 { // 20 MiB, more than the kernel takes
		s.fake.Output(id, strings.Repeat("x", 100<<10))
	}
	stalled := dial(t, "127.0.0.1", s.addr, "GET /jobs/"+stromboli.JobID(id)+"/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
	if _, err := io.ReadFull(stalled, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if resp, _ := reply(t, dial(t, "127.0.0.1", s.addr, get("/jobs"))); resp.StatusCode != 503 {
		t.Errorf("the stalled client holds no place: %d", resp.StatusCode)
	}
	eventually(t, "the stalled client to lose its place", func() bool {
		resp, _ := reply(t, dial(t, "127.0.0.1", s.addr, get("/jobs")))
		return resp.StatusCode == 200
	})
}

// TestHeaders: every answer carries what makes it harmless in a browser, and
// none says what the server is built with.
func TestHeaders(t *testing.T) {
	s := start(t, func(c *api.Config) { c.MaxBody = 1024 })
	run := submitted(t, s)
	id := stromboli.JobID(run)
	s.fake.Finish(run, stromboli.Outcome{Status: "completed"})
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/health", ""},
		{"GET", "/jobs/" + id, ""},
		{"GET", "/nothing", ""},
		{"PUT", "/run", ""},
		{"GET", "/jobs/" + id + "/events", ""},
		{"GET", "/jobs/" + id + "/stream", ""},
		{"POST", "/run", strings.Repeat(" ", 2000)},
		{"POST", "/run", "{"},
		{"GET", "/jobs?x=%zz", ""},
	} {
		got := s.ask(c.method, c.path, c.body)
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Server": "", "X-Powered-By": "",
		} {
			if v := got.header.Get(name); v != want {
				t.Errorf("%s %s (%d): %s is %q", c.method, c.path, got.status, name, v)
			}
		}
		if cc := got.header.Get("Cache-Control"); cc != "no-store" && cc != "no-cache" {
			t.Errorf("%s %s (%d): Cache-Control is %q", c.method, c.path, got.status, cc)
		}
	}
}

// TestNoHTTP2: there is no way to HTTP/2, by prior knowledge or by upgrade.
func TestNoHTTP2(t *testing.T) {
	s := start(t)
	if got := raw(t, s.addr, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); !strings.HasPrefix(got, "HTTP/1.1 5") && !strings.HasPrefix(got, "HTTP/1.1 4") || !strings.Contains(got, `"code":`) {
		t.Errorf("%q", got)
	}
	got := raw(t, s.addr, "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	if !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("%q", got)
	}
}

// TestURLIsNotLogged: what stands in a query may be anything, a secret too.
func TestURLIsNotLogged(t *testing.T) {
	var log bytes.Buffer
	s := start(t, func(c *api.Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	s.fake.OnSubmit = func(run stromboli.Run) { s.fake.Finish(run.ID, stromboli.Outcome{Status: "completed"}) }
	s.ask("GET", "/run/stream?prompt=canary-in-the-query", "")
	s.ask("GET", "/jobs?nonsense=canary-in-the-query", "")
	s.ask("POST", "/run", `{"prompt":"canary-in-the-query","x":1}`)
	s.ask("GET", "/jobs", "", "Authorization: Bearer canary-in-the-query", "X-Request-ID: canary in the query")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Contains(text, "canary") || !strings.Contains(text, "path=/run/stream") {
		t.Error(text)
	}
}
