package egress

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// records are the sandbox's first n, in the order in which the connections ended.
// What is read is forgotten by egress, as a server has it durable by then.
func (f *fixture) records(n int) []stromboli.EgressRecord {
	f.Helper()
	for len(f.read) < n {
		page, ok := f.g.records(f.Context(), "a", int64(len(f.read)), 100, 10*time.Second)
		if !ok || len(page) == 0 {
			f.Fatalf("%d records, want %d", len(f.read), n)
		}
		f.read = append(f.read, page...)
	}
	return f.read[:n]
}

// reach changes what the sandbox reaches.
func (f *fixture) reach(n stromboli.Network) {
	f.Helper()
	reg := f.registration("a")
	reg.Network, reg.RunID = n, "run-1"
	if err := f.g.add(reg); err != nil {
		f.Fatal(err)
	}
}

// TestModes: what each mode lets through, by each way; the control is the mode
// open, in which all of it passes.
func TestModes(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	web := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	webAddr := strings.TrimPrefix(web.URL, "http://")
	_, port, _ := net.SplitHostPort(webAddr)
	f := newFixture(t, Config{ModelURL: web.URL, Allow: []string{addr, webAddr, "a.example:" + port, "b.example:" + port}},
		resolving(map[string][]string{"a.example": {"127.0.0.1"}, "b.example": {"127.0.0.1"}}))
	type net = stromboli.Network
	ways := []struct{ name, text string }{
		{"model", "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"},
		{"tunnel", "CONNECT " + addr + " HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"a", "GET http://a.example:" + port + "/ HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"b", "GET http://b.example:" + port + "/ HTTP/1.1\r\nHost: x\r\n\r\n"},
	}
	for _, c := range []struct {
		network net
		passes  string
	}{
		{net{Mode: "open"}, "model tunnel a b"},
		{net{Mode: "none"}, ""},
		{net{Mode: "model"}, "model"},
		{net{Mode: "allowlist"}, "model"},
		{net{Mode: "allowlist", Allow: []string{"a.example"}}, "model a"},
		{net{Mode: "allowlist", Allow: []string{"*.example:" + port}}, "model a b"},
		{net{Mode: "allowlist", Allow: []string{"*.example:1", "127.0.0.1:1"}}, "model"},
		{net{Mode: "allowlist", Allow: []string{"127.0.0.0/8"}}, "model tunnel"}, // a name is judged by names
		{net{Mode: "allowlist", Allow: []string{"*.example"}, Deny: []string{"b.example"}}, "model a"},
		{net{Mode: "open", Deny: []string{"a.example:" + port}}, "model tunnel b"},
		{net{Mode: "open", Deny: []string{"127.0.0.1"}}, "model"}, // also by the address that a name has
		{net{Mode: "open", Deny: []string{"127.0.0.1:" + port}}, "model tunnel"},
	} {
		f.reach(c.network)
		for _, way := range ways {
			want := strings.Contains(" "+c.passes+" ", " "+way.name+" ")
			if got := f.raw(way.text); strings.Contains(got, " 200 ") != want || (!want && !strings.Contains(got, " 403 ")) {
				t.Errorf("%+v, %s: %s", c.network, way.name, got)
			}
		}
	}
	// A refusal says why, and the CLI that it need not ask again.
	f.reach(net{Mode: "none"})
	resp := f.post("/v1/messages", nil)
	if body := text(t, resp); resp.StatusCode != 403 || resp.Header.Get("X-Should-Retry") != "false" || !strings.Contains(body, "mode is none") {
		t.Errorf("none: %d %s", resp.StatusCode, body)
	}
	// Without a network, nothing is registered.
	if err := f.g.add(Sandbox{ID: "b", Socket: f.socket + "b", Token: testToken}); err == nil {
		t.Error("a sandbox without rules was registered")
	}
}

// TestRecords: one record per connection, with what became of it.
func TestRecords(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	_, port, _ := net.SplitHostPort(addr)
	web := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "hello")
	})
	webAddr := strings.TrimPrefix(web.URL, "http://")
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	f := newFixture(t, Config{ModelURL: web.URL, Allow: []string{addr, webAddr, closed.Addr().String()}})
	f.reach(openNetwork())

	c := f.dial()
	_, _ = io.WriteString(c, "CONNECT "+addr+" HTTP/1.1\r\nHost: x\r\n\r\nearly")
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	_, _ = io.WriteString(c, "later")
	_ = c.CloseWrite()
	if got, _ := io.ReadAll(r); string(got) != "earlylaterbye" {
		t.Fatalf("%q", got)
	}
	for i, request := range []string{
		"POST http://" + webAddr + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
		"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
		"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT 2130706433:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT " + closed.Addr().String() + " HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.records(i + 1) // the one before has ended
		f.raw(request)
	}
	records := f.records(6)
	portNo, _ := strconv.Atoi(port)
	for i, want := range []stromboli.EgressRecord{
		{Kind: "connect", Host: "127.0.0.1", Port: portNo, Address: "127.0.0.1", Verdict: "allowed", Sent: 10, Received: 13},
		{Kind: "request", Verdict: "allowed", Sent: 3, Received: 5, Status: 418, Address: "127.0.0.1"},
		{Kind: "model", Verdict: "allowed", Sent: 2, Received: 5, Status: 418, Address: "127.0.0.1"},
		{Kind: "connect", Host: "10.0.0.1", Port: 443, Verdict: "denied", Why: "private use"},
		{Kind: "connect", Host: "2130706433:443", Verdict: "denied", Why: "isn't understood"},
		{Kind: "connect", Verdict: "failed", Why: "refused"},
	} {
		got := records[i]
		if got.Seq != int64(i+1) || got.RunID != "run-1" || got.At.IsZero() || got.Kind != want.Kind || got.Verdict != want.Verdict ||
			got.Sent != want.Sent || got.Received != want.Received || got.Status != want.Status || !strings.Contains(got.Why, want.Why) ||
			(want.Why == "" && got.Why != "") || (want.Host != "" && (got.Host != want.Host || got.Port != want.Port)) || (want.Address != "" && got.Address != want.Address) {
			t.Errorf("record %d: %+v, want %+v", i+1, got, want)
		}
	}
}

// TestChangeCuts: a new network ends what it doesn't permit before the change
// is answered, and nothing else.
func TestChangeCuts(t *testing.T) {
	t.Parallel()
	keep, cut := echo(t), echo(t)
	release := make(chan struct{})
	web := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	webAddr := strings.TrimPrefix(web.URL, "http://")
	f := newFixture(t, Config{Allow: []string{keep, cut, webAddr}})
	f.reach(openNetwork())
	tunnel := func(to string) (*net.UnixConn, *bufio.Reader) {
		c := f.dial()
		_, _ = io.WriteString(c, "CONNECT "+to+" HTTP/1.1\r\nHost: x\r\n\r\n")
		r := bufio.NewReader(c)
		if resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect}); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		return c, r
	}
	kept, keptReader := tunnel(keep)
	_, goneReader := tunnel(cut)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, web.URL, http.NoBody)
	resp, err := f.proxy.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()

	f.reach(stromboli.Network{Mode: "allowlist", Allow: []string{keep}})
	d := f.g.list()[0]
	d.mu.Lock()
	open := len(d.flows)
	d.mu.Unlock()
	if open != 1 {
		t.Errorf("%d connections are left, want 1", open)
	}
	if _, err := goneReader.ReadByte(); err == nil {
		t.Error("the tunnel goes on")
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the request goes on")
	}
	_, _ = io.WriteString(kept, "x")
	if b, err := keptReader.ReadByte(); err != nil || b != 'x' {
		t.Errorf("the tunnel that is permitted: %v", err)
	}
	close(release)
	for _, r := range f.records(2) {
		if r.Verdict != stromboli.EgressAllowed || !strings.Contains(r.Why, "network was changed") {
			t.Errorf("%+v", r)
		}
	}
}

// TestClosedSandbox: its connections end with records, nobody comes in any
// more, and the records stay until it is removed.
func TestClosedSandbox(t *testing.T) {
	t.Parallel()
	addr := echo(t)
	f := newFixture(t, Config{Allow: []string{addr}})
	c := f.dial()
	_, _ = io.WriteString(c, "CONNECT "+addr+" HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for range 2 { // told again, by a server that doesn't know
		if err := f.g.add(Sandbox{ID: "a", Closed: true}); err != nil {
			t.Fatal(err)
		}
	}
	if got, ok := f.g.records(t.Context(), "a", 0, 10, time.Hour); !ok || len(got) != 1 || got[0].Kind != "connect" {
		t.Fatalf("%+v, %v", got, ok)
	}
	if got, _ := f.g.records(t.Context(), "a", 1, 10, time.Hour); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	if c, err := dialSandbox(t.Context(), f.socket); err == nil {
		// A process that another test is just starting may hold the socket for
		// a moment; nobody answers all the same.
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n > 0 || os.IsTimeout(err) {
			t.Errorf("the closed sandbox's socket takes connections: %d, %v", n, err)
		}
		_ = c.Close()
	}
	if err := f.g.add(f.registration("a")); err == nil {
		t.Error("a closed sandbox was opened again")
	}
	f.g.remove("a")
	if _, ok := f.g.records(t.Context(), "a", 0, 10, 0); ok {
		t.Error("removed and still known")
	}
}

// TestRecordsSurviveEveryProcess: records of an egress that is killed, and of
// one that drains under a successor, reach the server in one sequence; and the
// successor's rules hold for what its predecessor still carries.
func TestRecordsSurviveEveryProcess(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	addr := echo(t)
	sock := filepath.Join(dir, "1")
	first := supervise(t, filepath.Join(dir, "egress"), "one")
	cfg := Config{Demo: true, Allow: []string{addr}}
	if err := first.SetConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := first.Add(t.Context(), registration(sock)); err != nil {
		t.Fatal(err)
	}
	id := registration(sock).ID
	tunnel := func() *net.UnixConn {
		c, err := dialSandbox(t.Context(), sock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, "CONNECT "+addr+" HTTP/1.1\r\nHost: x\r\n\r\n")
		buf := make([]byte, 39)
		if _, err := io.ReadFull(c, buf); err != nil || !strings.Contains(string(buf), "200") {
			t.Fatalf("%q, %v", buf, err)
		}
		return c.(*net.UnixConn)
	}
	read := func(s *supervised, after int64, n int) []stromboli.EgressRecord {
		t.Helper()
		var all []stromboli.EgressRecord
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for len(all) < n {
			page, err := s.Records(ctx, id, after+int64(len(all)), 10, time.Second)
			if ctx.Err() != nil {
				t.Fatalf("%d of %d records: %v", len(all), n, err)
			}
			all = append(all, page...)
		}
		for i, r := range all {
			if r.Seq != after+int64(i)+1 {
				t.Fatalf("record %d has the number %d", i, r.Seq)
			}
		}
		return all
	}
	_ = tunnel().Close()
	read(first, 0, 1)
	tunnel() // open when the process is killed
	first.kill(t)
	if got := read(first, 1, 1); !strings.Contains(got[0].Why, "egress ended") {
		t.Fatalf("after a kill: %+v", got)
	}
	old := tunnel() // goes on in a process that drains
	first.stop()
	second := supervise(t, filepath.Join(dir, "egress"), "two")
	if err := second.SetConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := second.Add(t.Context(), registration(sock)); err != nil {
		t.Fatal(err)
	}
	_ = tunnel().Close()
	read(second, 2, 1)
	_, _ = io.WriteString(old, "x")
	if _, err := old.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the tunnel of the process that drains: %v", err)
	}
	closed := registration(sock)
	closed.Network.Mode = stromboli.NetworkNone
	if err := second.Add(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	_ = old.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := old.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // net.Conn's own
		t.Fatalf("the tunnel under new rules: %v", err)
	}
	if got := read(second, 3, 1); got[0].Sent != 1 || got[0].Received != 1 || !strings.Contains(got[0].Why, "network was changed") {
		t.Fatalf("the record of the process that drained: %+v", got)
	}
}

// kill ends the process and waits for the next one to know everything.
func (s *supervised) kill(t *testing.T) {
	t.Helper()
	pid := s.pid(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another process", func() bool {
		st, err := s.Status(t.Context())
		return err == nil && st.PID != pid && len(st.Sandboxes) > 0
	})
}
