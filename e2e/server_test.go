package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// server is one `stromboli serve` with a data directory of its own, and the
// scripted model that its sandboxes reach.
type server struct {
	t       *testing.T
	dir     string // short
	data    string
	volumes string // an allowed root for volumes
	env     []string
	stub    *modelstub.Server
	model   *httptest.Server
	log     *syncBuffer

	bin  string // the program, if it is another than the suite's
	cmd  *exec.Cmd
	done chan struct{}
	url  string
	c    *client.Client
}

// start makes a server and runs it; everything of it is gone after the test.
func start(t *testing.T, env ...string) *server {
	t.Helper()
	s := prepare(t, env...)
	s.up()
	return s
}

func prepare(t *testing.T, env ...string) *server {
	t.Helper()
	dir, err := os.MkdirTemp(suite.root, "s")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, data: filepath.Join(dir, "d"), volumes: filepath.Join(dir, "vol"), stub: modelstub.New(), log: &syncBuffer{}}
	if err := os.Mkdir(s.volumes, 0o755); err != nil {
		t.Fatal(err)
	}
	s.model = httptest.NewServer(s.stub)
	s.env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "STROMBOLI_CACHE_DIR=" + suite.cache,
		"STROMBOLI_DATA_DIR=" + s.data, "STROMBOLI_SERVER_ADDRESS=127.0.0.1:0", "STROMBOLI_AGENT_ALLOWED_VOLUMES=" + s.volumes,
		"CONTAINER_HOST=unix://" + suite.engine.Socket(), "ANTHROPIC_API_KEY=" + modelKey, "ANTHROPIC_BASE_URL=" + s.model.URL,
		"STROMBOLI_LOG_LEVEL=debug", "STROMBOLI_METRICS_ADDRESS=127.0.0.1:0", "STROMBOLI_RESOURCES_ALLOW_UNENFORCED=" + fmt.Sprint(suite.rootless),
		"STROMBOLI_RESOURCES_MEMORY=1g",
	}, env...)
	t.Cleanup(s.remove)
	return s
}

// up runs the server and returns when it answers.
func (s *server) up() {
	s.t.Helper()
	if err := s.tryUp(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) tryUp() error {
	_ = os.Remove(filepath.Join(s.data, "address"))
	cmd := exec.Command(cmp.Or(s.bin, suite.bin), "serve")
	cmd.Env, cmd.Dir, cmd.Stderr, cmd.Stdout = s.env, s.dir, s.log, s.log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	s.cmd, s.done = cmd, done
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		select {
		case <-done:
			return fmt.Errorf("the server ended: %s", s.log.tail(3000))
		case <-time.After(10 * time.Millisecond):
		}
		b, err := os.ReadFile(filepath.Join(s.data, "address"))
		if err != nil || !bytes.HasSuffix(b, []byte("\n")) {
			continue
		}
		s.url = strings.TrimSpace(string(b))
		resp, err := http.Get(s.url + "/livez")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			s.c = newClient(s.t, s.url)
			return nil
		}
	}
	return fmt.Errorf("the server doesn't answer: %s", s.log.tail(3000))
}

// kill ends the server by SIGKILL.
func (s *server) kill() {
	s.t.Helper()
	s.signal(syscall.SIGKILL)
}

// stop ends the server by SIGTERM.
func (s *server) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
}

func (s *server) signal(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
		s.t.Errorf("the server didn't end within 30 s of %s: %s", sig, s.log.tail(3000))
	}
	s.cmd = nil
}

// remove ends everything of the server and deletes it.
func (s *server) remove() {
	if s.t.Failed() {
		s.t.Logf("server log:\n%s", s.log.tail(12000))
	}
	s.stop()
	s.shutdownEgress()
	s.searchForSecrets()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, id := range s.sandboxes() {
		if err := suite.engine.Remove(ctx, "stromboli-"+id); err != nil {
			s.t.Errorf("removing a sandbox: %v", err)
		}
	}
	s.model.CloseClientConnections()
	s.model.Close()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Errorf("removing the server's directory: %v", err)
	}
}

func (s *server) egressControl() *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: unixTransport(filepath.Join(s.data, "egress", "control.sock"))}
}

func (s *server) shutdownEgress() {
	resp, err := s.egressControl().Post("http://egress/shutdown", "application/json", nil)
	if err == nil {
		_ = resp.Body.Close()
	}
}

// egressPID asks the egress process for its pid.
func (s *server) egressPID() int {
	s.t.Helper()
	resp, err := s.egressControl().Get("http://egress/status")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var status struct {
		PID int `json:"pid"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil || status.PID == 0 {
		s.t.Fatalf("egress status: %v, pid %d", err, status.PID)
	}
	return status.PID
}

// sandboxes lists the directories of sandboxes that the server has left.
func (s *server) sandboxes() []string {
	entries, _ := os.ReadDir(filepath.Join(s.data, "sb"))
	ids := make([]string, 0, len(entries))
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

// ctx is a deadline for one test.
func (s *server) ctx() context.Context {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	s.t.Cleanup(cancel)
	return ctx
}

// spec is a run of the given model script, with every tool allowed.
func spec(steps ...modelstub.Step) stromboli.RunSpec { return keyed("", steps...) }

// keyed is spec with a key that marks the requests in the model's record.
func keyed(key string, steps ...modelstub.Step) stromboli.RunSpec {
	b, err := json.Marshal(modelstub.Script{Key: key, Steps: steps})
	if err != nil {
		panic(err) // our own types
	}
	return stromboli.RunSpec{
		Prompt: "Please work.\nstub: " + string(b) + "\n" + promptCanary,
		Claude: stromboli.ClaudeOptions{DangerouslySkipPermissions: true},
	}
}

// bash is a step that has the agent run a command.
func bash(command string) modelstub.Step {
	in, err := json.Marshal(map[string]string{"command": command, "description": "test"})
	if err != nil {
		panic(err)
	}
	return modelstub.Step{ToolUse: &modelstub.ToolUse{Name: "Bash", Input: in}}
}

func text(s string) modelstub.Step { return modelstub.Step{Text: s} }

// syncBuffer is a writer that several processes and the test share.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.b.String()
	return s[max(0, len(s)-n):]
}

func newClient(t *testing.T, url string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: url, Transport: canaryTransport{t, &http.Transport{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func unixTransport(path string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
}

// events collects a run's events up to its end and checks that each is there
// once and in order.
func (s *server) events(id string) []stromboli.Event {
	s.t.Helper()
	var all []stromboli.Event
	for e, err := range s.c.Events(s.ctx(), id, 0) {
		if err != nil {
			s.t.Fatalf("events of %s: %v", id, err)
		}
		all = append(all, e)
	}
	checkSequence(s.t, all)
	return all
}

// checkSequence verifies a finished run's events: numbered without gaps,
// created first, finished last, started at most once.
func checkSequence(t *testing.T, events []stromboli.Event) {
	t.Helper()
	count := map[stromboli.EventType]int{}
	for i, e := range events {
		if e.Seq != int64(i+1) {
			t.Fatalf("event %d has the sequence %d", i+1, e.Seq)
		}
		count[e.Type]++
	}
	if len(events) == 0 || events[0].Type != stromboli.EventRunCreated || events[len(events)-1].Type != stromboli.EventRunFinished {
		t.Fatalf("%d events don't begin with run.created and end with run.finished", len(events))
	}
	if count[stromboli.EventRunCreated] != 1 || count[stromboli.EventRunFinished] != 1 || count[stromboli.EventRunStarted] > 1 {
		t.Fatalf("created, started, finished: %d, %d, %d times", count[stromboli.EventRunCreated], count[stromboli.EventRunStarted], count[stromboli.EventRunFinished])
	}
}

// waitFor polls until ok, and fails the test after a while.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for: %s", what)
}

// waitPhase waits until a run is in a phase, or has ended.
func (s *server) waitPhase(id string, phase stromboli.Phase) {
	s.t.Helper()
	waitFor(s.t, "phase "+string(phase), func() bool {
		j, err := s.c.Job(s.ctx(), id)
		if err != nil {
			s.t.Fatal(err)
		}
		if j.Status.Terminal() {
			s.t.Fatalf("run ended before its phase %s: %s %s", phase, j.Status, j.Error)
		}
		return j.Phase == phase
	})
}

// letGo makes the file for which a run's agent waits in its workspace.
func (s *server) letGo(id, name string) {
	s.t.Helper()
	job, err := s.c.Job(s.ctx(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.data, "sessions", job.SessionID, "workspace", name), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
}
