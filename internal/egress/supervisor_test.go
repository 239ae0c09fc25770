package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// supervised is a supervisor that runs, with the test binary as its process.
type supervised struct {
	*Supervisor
	dir  string
	stop func() // waits
}

func supervise(t *testing.T, dir, build string, env ...string) *supervised {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sup := NewSupervisor(SupervisorConfig{
		Dir: dir, Command: []string{exe}, Build: build, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Env: append([]string{serveDirEnv + "=" + dir, "EGRESS_TEST_BUILD=" + build}, env...),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sup.Run(ctx) }()
	stopped := false
	s := &supervised{Supervisor: sup, dir: dir}
	s.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(func() {
		s.stop()
		if st, err := sup.Status(context.Background()); err == nil {
			_ = syscall.Kill(st.PID, syscall.SIGKILL)
			reapChild(st.PID)
		}
	})
	return s
}

// reapChild lets no zombie of this test stay for the next one.
func reapChild(pid int) {
	var ws syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &ws, 0, nil)
}

func (s *supervised) pid(t *testing.T) int {
	t.Helper()
	st, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.PID
}

// ask makes one model request through a sandbox's socket.
func ask(ctx context.Context, socket string) (string, error) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, socket) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://egress/v1/messages", strings.NewReader("{}"))
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	return string(data), err
}

func registration(socket string) Sandbox {
	return Sandbox{ID: "s-" + filepath.Base(socket), Socket: socket, Token: testToken, PeerUID: ownUID(), HasPeerUID: true, Network: openNetwork()}
}

func TestSupervisorRestartsAndReplays(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Header.Get("X-Api-Key")) })
	s := supervise(t, filepath.Join(dir, "egress"), "one")
	if err := s.SetConfig(t.Context(), Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}}); err != nil {
		t.Fatal(err)
	}
	one, two, gone := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "gone", "3")
	if err := os.Mkdir(filepath.Dir(gone), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, sock := range []string{one, two, gone} {
		if err := s.Add(t.Context(), registration(sock)); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.RemoveAll(filepath.Dir(gone)) // its being gone must not keep the others from coming back
	if err := s.Remove(t.Context(), "s-2"); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		if got, err := ask(t.Context(), one); err != nil || got != "sk-real" {
			t.Fatalf("round %d: %q, %v", round, got, err)
		}
		if _, err := ask(t.Context(), two); err == nil {
			t.Fatalf("round %d: the removed sandbox is served", round)
		}
		pid := s.pid(t)
		if pgid, err := syscall.Getpgid(pid); err != nil || pgid != pid {
			t.Fatalf("the process is not in a session of its own: %d, %v", pgid, err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		// The registration made while it is down is there once Add returns.
		late := filepath.Join(dir, fmt.Sprintf("late%d", round))
		if err := s.Add(t.Context(), registration(late)); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(t.Context(), late); err != nil || got != "sk-real" {
			t.Fatalf("round %d: %q, %v", round, got, err)
		}
		eventually(t, "a new process", func() bool {
			st, err := s.Status(t.Context())
			return err == nil && st.PID != pid
		})
		eventually(t, "the old sandbox is served again", func() bool {
			got, err := ask(t.Context(), one)
			return err == nil && got == "sk-real"
		})
		t.Logf("back after %v", time.Since(start))
	}
}

func TestSupervisorAdopts(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	next := make(chan string)
	u := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		for s := range next {
			_, _ = io.WriteString(w, s+"\n")
			_ = http.NewResponseController(w).Flush()
		}
	})
	first := supervise(t, filepath.Join(dir, "egress"), "one")
	cfg := Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}}
	sock := filepath.Join(dir, "1")
	if err := first.SetConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{sock, filepath.Join(dir, "stray")} {
		if err := first.Add(t.Context(), registration(s)); err != nil {
			t.Fatal(err)
		}
	}
	pid := first.pid(t)
	body, closeBody := inFlight(t, sock, next)
	defer closeBody()
	first.stop()

	second := supervise(t, filepath.Join(dir, "egress"), "one")
	if err := second.SetConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if err := second.Add(t.Context(), registration(sock)); err != nil {
		t.Fatal(err)
	}
	if err := second.Remove(t.Context(), "s-stray"); err != nil {
		t.Fatal(err)
	}
	st, err := second.Status(t.Context())
	if err != nil || st.PID != pid || len(st.Sandboxes) != 1 || st.Sandboxes[0] != "s-1" {
		t.Fatalf("%+v, %v; want pid %d with s-1 alone", st, err, pid)
	}
	finish(t, body, next)
}

// TestSupervisorReplacesAnotherBuild: the new process takes the sockets, the
// old one finishes what it began.
func TestSupervisorReplacesAnotherBuild(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	next := make(chan string)
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Api-Key") == "sk-two" {
			_, _ = io.WriteString(w, "two")
			return
		}
		for s := range next {
			_, _ = io.WriteString(w, s+"\n")
			_ = http.NewResponseController(w).Flush()
		}
	})
	first := supervise(t, filepath.Join(dir, "egress"), "one")
	sock := filepath.Join(dir, "1")
	if err := first.SetConfig(t.Context(), Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-one"}}); err != nil {
		t.Fatal(err)
	}
	if err := first.Add(t.Context(), registration(sock)); err != nil {
		t.Fatal(err)
	}
	oldPID := first.pid(t)
	body, closeBody := inFlight(t, sock, next)
	defer closeBody()
	first.stop()

	second := supervise(t, filepath.Join(dir, "egress"), "two")
	if err := second.SetConfig(t.Context(), Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-two"}}); err != nil {
		t.Fatal(err)
	}
	if err := second.Add(t.Context(), registration(sock)); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t.Context(), sock); err != nil || got != "two" || second.pid(t) == oldPID {
		t.Fatalf("%q, %v", got, err)
	}
	finish(t, body, next)
	eventually(t, "the old process ends when it has nothing left", func() bool {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(oldPID, &ws, syscall.WNOHANG, nil)
		return pid == oldPID || err != nil
	})
}

// inFlight begins a model answer and returns once its first piece has come.
func inFlight(t *testing.T, sock string, next chan string) (*bufio.Reader, func()) {
	t.Helper()
	c, err := dialSandbox(t.Context(), sock)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
	next <- "begin"
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); line != "begin\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return body, func() { _ = c.Close() }
}

func finish(t *testing.T, body *bufio.Reader, next chan string) {
	t.Helper()
	next <- "end"
	close(next)
	if rest, err := io.ReadAll(body); err != nil || string(rest) != "end\n" {
		t.Errorf("the answer in flight ended with %q, %v", rest, err)
	}
}

func TestServeEndsByItself(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	done := make(chan error, 1)
	cfg := ServeConfig{Dir: dir, IdleTimeout: 150 * time.Millisecond, AbandonAfter: time.Second}
	go func() { done <- Serve(t.Context(), cfg) }()
	client := NewClient(dir)
	eventually(t, "it answers", func() bool { _, err := client.Status(t.Context()); return err == nil })
	ctx, cancel := context.WithCancel(t.Context())
	watch, err := client.watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sleep(t.Context(), 500*time.Millisecond)
	select {
	case err := <-done:
		t.Fatalf("ended while a server was there: %v", err)
	default:
	}
	// A sandbox keeps it too, but not for ever.
	if err := client.Add(t.Context(), registration(filepath.Join(dir, "s"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = watch.Close()
	start := time.Now()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 500*time.Millisecond || d > 10*time.Second {
		t.Errorf("it ended %v after its server", d)
	}
	go func() { done <- Serve(t.Context(), cfg) }()
	if err := <-done; err != nil { // idle from the start, and the lock is free again
		t.Fatal(err)
	}
}

func TestServeIsAlone(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ServeConfig{Dir: dir}) }()
	eventually(t, "it answers", func() bool { _, err := NewClient(dir).Status(t.Context()); return err == nil })
	st, err := os.Stat(filepath.Join(dir, controlSocket))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", st, err)
	}
	if _, err := lockFile(t.Context(), filepath.Join(dir, processLock), 50*time.Millisecond); err == nil {
		t.Error("the lock could be taken twice")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSupervisorSaysWhyItDoesNotStart(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	sup := NewSupervisor(SupervisorConfig{Dir: dir, Command: []string{"/bin/false"}})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := sup.ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "ended at once") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := sup.Add(ctx, registration(filepath.Join(dir, "s"))); err == nil {
		t.Error("Add returned without a process")
	}
	if err := sup.Remove(t.Context(), "s-s"); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

// TestBindingsSurviveDeath: a process that comes after one that was killed knows
// the bindings before it takes a connection: none reaches the host without.
func TestBindingsSurviveDeath(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	world, inside := newAuthority(t), newAuthority(t)
	shown := make(chan string, 1000)
	host := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { shown <- r.Header.Get("Authorization") }))
	to := "localhost:" + startTLS(t, host, world.issue(time.Now().Add(time.Hour), "localhost"))
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, world.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := supervise(t, filepath.Join(dir, "egress"), "one", "SSL_CERT_FILE="+roots)
	if err := s.SetConfig(t.Context(), Config{Allow: []string{to}}); err != nil {
		t.Fatal(err)
	}
	reg := registration(filepath.Join(dir, "1"))
	reg.Bindings, reg.Identity = []Binding{{To: to, Header: "Authorization", Value: boundSecret}}, inside.identity("localhost")
	if err := s.Add(t.Context(), reg); err != nil {
		t.Fatal(err)
	}
	tool := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: inside.pool()},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, reg.Socket) },
		Proxy:       func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: "egress"}, nil },
	}}
	get := func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+to, nil)
		if err != nil {
			return err
		}
		resp, err := tool.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	for range 3 {
		if err := get(); err != nil {
			t.Fatal(err)
		}
		pid := s.pid(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the host is reached again", func() bool {
			err := get()
			if err != nil && strings.Contains(err.Error(), "certificate") { // the host's own: it was not opened
				t.Error(err)
			}
			return err == nil
		})
	}
	for len(shown) > 0 {
		if got := <-shown; got != boundSecret {
			t.Errorf("the host was shown %q", got)
		}
	}
}
