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
		{[]string{"STROMBOLI_NONSENSE=1"}, nil, "STROMBOLI_NONSENSE"}, // it serves
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
func serveFake(t *testing.T, fake *apitest.Fake, change ...func(*api.Config)) string {
	t.Helper()
	cfg := api.Config{
		Runs: fake, Events: fake, Sessions: &apitest.Shelf{}, Secrets: &apitest.Vault{}, Images: &apitest.Gallery{}, Webhooks: &fake.Box, System: fake, Log: slog.New(slog.DiscardHandler), Drain: 100 * time.Millisecond, Render: claude.AssistantText,
	}
	for _, c := range change {
		c(&cfg)
	}
	a, err := api.New(cfg)
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
