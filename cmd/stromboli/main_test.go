package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// screen is what a command printed; it may be read while the command runs.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// command runs a command line with a home of its own.
func command(ctx context.Context, t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs screen
	code = run(ctx, process{
		args: args, environ: append([]string{"HOME=" + t.TempDir()}, environ...), stdin: strings.NewReader("from stdin"),
		stdout: &out, stderr: &errs,
	})
	return code, out.String(), errs.String()
}

func TestVersionAndHelp(t *testing.T) {
	code, out, _ := command(t.Context(), t, nil, "version")
	if code != 0 || !strings.HasPrefix(out, "stromboli "+version) {
		t.Errorf("%d, %q", code, out)
	}
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}, {"run", "--help"}, {"setup", "--help"}} {
		code, out, errs := command(t.Context(), t, nil, args...)
		if code != 0 || !strings.Contains(out, "Usage: stromboli") || errs != "" {
			t.Errorf("%v: %d, %q, %q", args, code, out, errs)
		}
	}
	if _, out, _ := command(t.Context(), t, nil, "--help"); strings.Contains(out, "egress") {
		t.Error("help shows what people don't call")
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, c := range []struct {
		environ []string
		args    []string
		says    string
	}{
		{nil, []string{"nonsense"}, "nonsense"},
		{nil, nil, "expected one of"},
		{nil, []string{"serve", "--nonsense"}, "--nonsense"},
		{[]string{"STROMBOLI_NONSENSE=1"}, []string{"serve"}, "STROMBOLI_NONSENSE"},
		{[]string{"STROMBOLI_SERVER_ADDRESS=0.0.0.0:1"}, []string{"serve"}, "STROMBOLI_AUTH_ALLOW_PUBLIC"},
		{[]string{"STROMBOLI_NONSENSE=1"}, []string{"run", "x"}, "STROMBOLI_NONSENSE"},
		{nil, []string{"run", "x"}, "stromboli serve"},
		{nil, []string{"run", "x", "--timeout", "soon"}, "timeout"},
		{nil, []string{"egress"}, "--dir"},
	} {
		code, _, errs := command(t.Context(), t, c.environ, c.args...)
		if code != 1 || !strings.Contains(errs, c.says) {
			t.Errorf("%v: %d, %q", c.args, code, errs)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		status stromboli.Status
		reason stromboli.Reason
		code   int
	}{
		{stromboli.Completed, "", 0},
		{stromboli.Failed, stromboli.ReasonModel, 1},
		{stromboli.Crashed, stromboli.ReasonOOM, 3},
		{stromboli.Failed, stromboli.ReasonTimeout, 124},
		{stromboli.Cancelled, stromboli.ReasonRequest, 130},
		{stromboli.Running, "", 1},
	} {
		if got := exitCode(c.status, c.reason); got != c.code {
			t.Errorf("%s (%s): %d, want %d", c.status, c.reason, got, c.code)
		}
	}
}

// serveFake answers with runs that do what a test says.
func serveFake(t *testing.T, fake *apitest.Fake) string {
	t.Helper()
	a, err := api.New(api.Config{
		Runs: fake, Events: fake, Secrets: &apitest.Vault{}, System: fake, Log: slog.New(slog.DiscardHandler), Drain: 100 * time.Millisecond, Render: claude.AssistantText,
	})
	must(t, err)
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		must(t, <-served)
	})
	return "http://" + ln.Addr().String()
}

func TestRunCommand(t *testing.T) {
	for _, end := range []stromboli.Outcome{
		{Status: stromboli.Completed, Output: "the answer"},
		{Status: stromboli.Failed, Reason: stromboli.ReasonTimeout, Error: "too late"},
		{Status: stromboli.Crashed, Reason: stromboli.ReasonLost, Error: "gone", CrashInfo: &stromboli.CrashInfo{}},
	} {
		fake := apitest.New()
		var got stromboli.RunSpec
		fake.OnSubmit = func(run stromboli.Run) {
			got = run.Spec
			fake.Append(run.ID, stromboli.EventOutput, stromboli.OutputData{
				Stream: "stdout", Line: `{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Bash","input":{"command":"ls \u001b[31m"}}]}}`,
			})
			fake.Finish(run.ID, end)
		}
		url := serveFake(t, fake)
		code, out, errs := command(t.Context(), t, []string{"STROMBOLI_URL=" + url}, "run", "-", "-C", "/srv", "-v", "/a:/b,ro", "--memory", "1g", "--timeout", "5s")
		if code != exitCode(end.Status, end.Reason) {
			t.Errorf("exit code %d: %s", code, errs)
		}
		if strings.TrimSpace(out) != end.Output || !strings.Contains(errs, "Bash: ls \uFFFD[31m") || !strings.Contains(errs, string(end.Status)) {
			t.Errorf("printed %q and %q", out, errs)
		}
		if got.Prompt != "from stdin" || got.Workdir != "/srv" || len(got.Podman.Volumes) != 1 || !got.Claude.DangerouslySkipPermissions ||
			time.Duration(got.Podman.Timeout) != 5*time.Second {
			t.Errorf("asked for %+v", got)
		}
	}
}

// Control-C cancels the run and waits for its end.
func TestRunCommandIsInterrupted(t *testing.T) {
	fake := apitest.New()
	ctx, interrupt := context.WithCancel(t.Context())
	fake.OnSubmit = func(stromboli.Run) { time.AfterFunc(100*time.Millisecond, interrupt) }
	code, _, errs := command(ctx, t, nil, "run", "x", "--server", serveFake(t, fake))
	if code != exitCancelled || !strings.Contains(errs, "cancelling") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestRunCommandIsRefused(t *testing.T) {
	fake := apitest.New()
	fake.SubmitErr = func(stromboli.Submission) error { return stromboli.FieldError("podman.memory", "is nonsense") }
	code, _, errs := command(t.Context(), t, nil, "run", "x", "--server", serveFake(t, fake))
	if code != 1 || !strings.Contains(errs, "podman.memory: is nonsense") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestDataDirectory(t *testing.T) {
	parent, err := os.MkdirTemp("", "d") // short
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	path := filepath.Join(parent, "new", "d")
	d, err := openDataDir(path)
	must(t, err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	must(t, d.writeAddress("http://here"))

	// Another server, also by another name of the directory, is refused.
	must(t, os.Symlink(path, filepath.Join(parent, "link")))
	for _, name := range []string{path, filepath.Join(parent, "link")} {
		var inUse errInUse
		if _, err := openDataDir(name); !errors.As(err, &inUse) || inUse.address != "http://here" || !strings.Contains(err.Error(), "http://here") {
			t.Errorf("%s: %v", name, err)
		}
	}
	code, _, errs := command(t.Context(), t, []string{"STROMBOLI_DATA_DIR=" + path}, "serve")
	if code != 1 || !strings.Contains(errs, "another stromboli server at http://here") {
		t.Errorf("serve: %d, %s", code, errs)
	}
	must(t, d.close())
	if at := readAddress(path); at != "" {
		t.Errorf("the address outlives the server: %q", at)
	}
	d, err = openDataDir(path)
	must(t, err)
	must(t, d.close())

	if _, err := openDataDir(filepath.Join(parent, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "STROMBOLI_DATA_DIR") {
		t.Errorf("a long path: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(parent, "file"), nil, 0o600))
	if _, err := openDataDir(filepath.Join(parent, "file")); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func TestShow(t *testing.T) {
	var out screen
	s := &show{w: &out, start: time.Now()}
	cli := func(line string) {
		b, err := json.Marshal(stromboli.OutputData{Stream: "stdout", Line: line})
		must(t, err)
		s.event(stromboli.Event{Type: stromboli.EventOutput, Data: b})
	}
	s.event(stromboli.Event{Type: stromboli.EventPhase, Data: json.RawMessage(`{"phase":"creating"}`)})
	s.event(stromboli.Event{Type: stromboli.EventWarning, Data: json.RawMessage(`{"code":"c","message":"be warned"}`)})
	s.event(stromboli.Event{Type: stromboli.EventOutput, Data: json.RawMessage(`{"stream":"stderr","line":"complaint"}`)})
	s.event(stromboli.Event{Type: "unknown", Data: json.RawMessage(`{"x":1}`)})
	s.event(stromboli.Event{Type: stromboli.EventOutput, Data: json.RawMessage(`[]`)})
	cli(`not json`)
	cli(`{"type":"assistant","message":{"content":[{"type":"text","text":"one\ntwo"},{"type":"tool_use","name":"Write","input":{"file_path":"/f"}}]}}`)
	cli(`{"type":"user","message":{"content":[{"type":"tool_result","is_error":true,"content":"failed"}]}}`)
	cli(`{"type":"user","message":{"content":[{"type":"tool_result","content":[{"type":"text","text":"` + strings.Repeat(`line\n`, 20) + `"}]}]}}`)
	cli(`{"type":"user","message":{"content":"plain"}}`)
	cli(`{"type":"system","subtype":"api_retry"}`)
	got := out.String()
	for _, want := range []string{"creating", "be warned", "complaint", "» one", "  two", "▸ Write: /f", "✗ failed", "… 8 more lines", "tries again"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if printable("a\tb\x1b[0m\u009b\x7f\x00é») ") != "a b\uFFFD[0m\uFFFD\uFFFD\uFFFDé») " {
		t.Errorf("%q", printable("a\tb\x1b[0m\u009b\x7f\x00é») "))
	}
}

// told counts what egress is told.
type told struct {
	configs []egress.Config
	err     error
}

func (e *told) SetConfig(_ context.Context, cfg egress.Config) error {
	e.configs = append(e.configs, cfg)
	return e.err
}

func TestModelTellsEgressWhatChanged(t *testing.T) {
	to := &told{err: errors.New("away")}
	key := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(key, []byte("sk-ant-oat01-one"), 0o600))
	m, err := newModel(&config.Config{Agent: config.Agent{SecretsFile: key}}, nil, false, to, slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := m.Ready(t.Context()); err == nil {
		t.Error("ready without egress")
	}
	to.err = nil
	for range 3 {
		if kind, err := m.Ready(t.Context()); kind != claude.OAuth || err != nil {
			t.Errorf("%s, %v", kind, err)
		}
	}
	must(t, os.WriteFile(key, []byte("sk-ant-api03-two"), 0o600)) // renewed
	if kind, err := m.Ready(t.Context()); kind != claude.APIKey || err != nil {
		t.Errorf("%s, %v", kind, err)
	}
	if len(to.configs) != 3 || to.configs[2].Credential.Value != "sk-ant-api03-two" {
		t.Errorf("told %d times", len(to.configs))
	}
	must(t, os.Remove(key))
	if _, err := m.Ready(t.Context()); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("without a key: %v", err)
	}
	m.turn <- struct{}{} // somebody waits for egress
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind somebody who waits: %v", err)
	}
}

// What egress can't take is told at the start, or to who asks for a run.
func TestModelRefusesWhatEgressWould(t *testing.T) {
	for _, c := range []struct {
		name    string
		allow   []string
		environ []string
	}{
		{"STROMBOLI_EGRESS_ALLOW", []string{"host"}, nil},
		{"STROMBOLI_EGRESS_ALLOW", []string{"host:99999"}, nil},
		{"ANTHROPIC_BASE_URL", nil, []string{"ANTHROPIC_BASE_URL=ftp://host"}},
	} {
		_, err := newModel(&config.Config{Egress: config.Egress{Allow: c.allow}}, c.environ, false, &told{}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%v %v: %v", c.allow, c.environ, err)
		}
	}
	m, err := newModel(&config.Config{}, []string{"ANTHROPIC_API_KEY=a\nb"}, false, &told{}, slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := m.Ready(t.Context()); !errors.Is(err, stromboli.NotConfigured) || !strings.Contains(err.Error(), "ANTHROPIC_API_KEY") {
		t.Errorf("a key that no header may hold: %v", err)
	}
	if st := m.status(); st.Configured {
		t.Errorf("configured: %+v", st)
	}
}

func TestEgressGetsNoSecrets(t *testing.T) {
	got := egressEnv([]string{"PATH=/bin", "ANTHROPIC_API_KEY=k", "HOME=/h", "CLAUDE_CODE_OAUTH_TOKEN=t", "STROMBOLI_X=y", "HTTPS_PROXY=http://u:p@h"})
	if strings.Join(got, " ") != "PATH=/bin HOME=/h" {
		t.Errorf("%v", got)
	}
}

// TestModelWatch: a renewed token reaches egress without anybody asking; a file
// that is broken meanwhile changes nothing.
func TestModelWatch(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "credentials.json")
	write := func(text string) {
		must(t, os.WriteFile(file+".new", []byte(text), 0o600))
		must(t, os.Rename(file+".new", file))
	}
	write(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-one","expiresAt":4102444800000}}`)
	to := &toldAll{}
	var log bytes.Buffer
	m, err := newModel(&config.Config{Agent: config.Agent{CredentialsFile: file}}, nil, false, to, slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	_, err = m.Ready(t.Context())
	must(t, err)
	if st := m.status(); !st.Configured || st.Kind != claude.OAuth || st.Source != file || st.ExpiresAt.Year() != 2100 || strings.Contains(st.Message, "oat01") {
		t.Errorf("%+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.watch(ctx) }()
	time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the first look is at the present file
	write(`{"claudeAiOauth":{"accessTo`)
	for m.status().Configured {
	}
	if kind, err := m.Ready(t.Context()); kind != claude.OAuth || err != nil {
		t.Errorf("with a broken file: %s, %v", kind, err)
	}
	write(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-two"}}`)
	for end := time.Now().Add(20 * time.Second); to.newest() != "sk-ant-oat01-two" && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) //nolint:forbidigo // what is waited for is another's doing
	}
	cancel()
	must(t, <-done)
	if to.newest() != "sk-ant-oat01-two" || to.count() != 2 {
		t.Errorf("told %d times, the last %q", to.count(), to.newest())
	}
	if strings.Contains(log.String(), "oat01") {
		t.Errorf("the log has a token: %s", &log)
	}
}

// toldAll keeps what egress is told; it may be asked meanwhile.
type toldAll struct {
	mu sync.Mutex
	told
}

func (e *toldAll) SetConfig(ctx context.Context, cfg egress.Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.told.SetConfig(ctx, cfg)
}

func (e *toldAll) newest() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.configs[len(e.configs)-1].Credential.Value
}

func (e *toldAll) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.configs)
}
