package e2e_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestModelFaults: faults of the model's endpoint that pass are survived. What
// becomes of those that don't pass is TestOutcomes'.
func TestModelFaults(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4")
	survives := func(output string) func(*testing.T, endedRun) {
		return func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if r.Output != output {
				t.Errorf("the output is %q", r.Output)
			}
		}
	}
	partial := spec(modelstub.Step{Text: "a whole sentence", Chunk: 4, Cut: &modelstub.Cut{Deltas: 2, AfterMS: 500}, Times: 1})
	partial.Claude.IncludePartialMessages = true
	long := spec(modelstub.Step{Bytes: 9 << 20, Chunk: 1 << 20}) // the real CLI takes half a minute for 50 MiB
	long.Podman.Memory = "2g"
	s.fleet(t, []fleetRun{
		{"answers 9 MiB", long, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			var cut stromboli.CutLineData
			if !r.first(t, stromboli.EventCut, &cut) || cut.Kept != 8<<20 || cut.Dropped < 1<<20 || !r.warned("output_cut") {
				t.Errorf("cut %+v, warnings %v", cut, r.Warnings)
			}
			if len(r.Output) == 0 || len(r.Output) > 8<<20 {
				t.Errorf("the output has %d bytes", len(r.Output))
			}
		}},
		{"429 once", spec(modelstub.Step{Text: "at last", Status: 429, Times: 1}), survives("at last")},
		{"500 once", spec(modelstub.Step{Text: "at last", Status: 500, Times: 1}), survives("at last")},
		{"cuts the stream at its beginning", spec(modelstub.Step{Text: "said twice", Cut: &modelstub.Cut{}, Times: 1}), survives("said twice")},
		{"cuts the stream in mid-answer", partial, func(t *testing.T, r endedRun) {
			survives("a whole sentence")(t, r)
			if r.count(stromboli.EventSuperseded) != 1 {
				t.Errorf("superseded %d times", r.count(stromboli.EventSuperseded))
			}
		}},
		{"asks for a tool that isn't there", spec(tool("NoSuchTool", `{"a":1}`), text("never mind")), survives("never mind")},
		{"sends what is no Unicode", spec(tool("Bash", `{"command":"printf '\\xff\\xfe\\n'; echo '\ud800'","description":"\udfff"}`), text("odd")), survives("odd")},
	})
}

// TestNotConfigured: without a credential nothing is made, and it is said.
func TestNotConfigured(t *testing.T) {
	s := start(t, "ANTHROPIC_API_KEY=")
	a := s.send(t, "POST", "/run", `{"prompt":"x"}`)
	a.refused(t, 503, "not_configured", "")
	if a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if o := s.send(t, "GET", "/claude/status", "").want(t, 200).object(t); o["configured"] != false || o["message"] == "" {
		t.Errorf("claude/status is %v", o)
	}
	if o := s.send(t, "GET", "/readyz", "").want(t, 503).object(t); len(o["reasons"].([]any)) == 0 { //nolint:forcetypeassert // the test's failure either way
		t.Errorf("readyz is %v", o)
	}
	s.idle(t)
}

// relay is a socket in front of the engine's, which can be taken away.
type relay struct {
	path string

	mu    sync.Mutex
	l     net.Listener
	conns map[net.Conn]bool
	held  chan struct{} // closed: what comes is passed on
	wg    sync.WaitGroup
}

// freeze has the engine take connections and requests, and answer none.
func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = make(chan struct{})
	for c := range r.conns {
		_ = c.Close()
	}
}

// thaw ends that.
func (r *relay) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.held)
	r.held = nil
}

// wait returns when what comes may be passed on.
func (r *relay) wait() {
	r.mu.Lock()
	held := r.held
	r.mu.Unlock()
	if held != nil {
		<-held
	}
}

func (r *relay) up(t *testing.T) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.l, r.conns = l, map[net.Conn]bool{}
	r.mu.Unlock()
	r.wg.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			r.wait()
			up, err := net.Dial("unix", suite.engine.Socket())
			if err != nil {
				_ = down.Close()
				continue
			}
			r.mu.Lock()
			r.conns[down], r.conns[up] = true, true
			r.mu.Unlock()
			for _, way := range [][2]net.Conn{{up, down}, {down, up}} {
				r.wg.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					if c, ok := way[0].(*net.UnixConn); ok {
						_ = c.CloseWrite()
					}
				})
			}
		}
	})
}

func (r *relay) down() {
	r.mu.Lock()
	if r.l != nil {
		_ = r.l.Close()
	}
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// newRelay is a relay that is up until the test's end.
func newRelay(t *testing.T) *relay {
	t.Helper()
	dir, err := os.MkdirTemp(suite.root, "r")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{path: filepath.Join(dir, "p.sock")}
	r.up(t)
	t.Cleanup(r.down)
	return r
}

// TestEngineDown: without the engine nothing new starts, and what runs goes on.
func TestEngineDown(t *testing.T) {
	engine := newRelay(t)
	s := start(t, "CONTAINER_HOST=unix://"+engine.path)
	gate := s.gate(t)
	id := s.submit(t, gate.spec(text("didn't notice")))
	s.inTool(t, id)

	engine.down()
	for _, path := range []string{"/run", "/run/async", "/run/stream"} {
		a := s.send(t, "POST", path, specJSON(t, spec(text("x"))))
		a.refused(t, 503, "engine_down", "")
		if a.header.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
	}
	waitFor(t, "/health to say so", func() bool {
		return s.send(t, "GET", "/health", "").want(t, 200).object(t)["status"] == "degraded"
	})
	s.send(t, "GET", "/readyz", "").want(t, 503)
	s.send(t, "GET", "/livez", "").want(t, 200)
	gate.open(t)
	r := s.await(t, id)
	r.want(t, stromboli.Completed, "")
	if r.Output != "didn't notice" {
		t.Errorf("the output is %q", r.Output)
	}

	engine.up(t)
	waitFor(t, "the server to be ready", func() bool { return s.send(t, "GET", "/readyz", "").status == 200 })
	s.do(t, inSession(r.SessionID, spec(text("back")))).want(t, stromboli.Completed, "")
	if o := s.send(t, "GET", "/jobs?kind=all", "").object(t); len(o["jobs"].([]any)) != 2 { //nolint:forcetypeassert // the test's failure either way
		t.Errorf("the refused requests left runs: %v", o)
	}
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}

// rogue makes a server whose agent CLI is a stand-in that runs the prompt as a
// shell script: it prints what the real one never would. The real one lives in
// the same sandbox and may be taken over by what it runs.
func rogue(t *testing.T, env ...string) *server {
	t.Helper()
	s := prepareRogue(t, env...)
	s.up()
	return s
}

func prepareRogue(t *testing.T, env ...string) *server {
	t.Helper()
	real, err := filepath.Glob(filepath.Join(suite.cache, "cli", "[0-9]*-glibc"))
	if err != nil || len(real) == 0 {
		t.Fatal("no agent CLI in the cache", err)
	}
	cache, err := os.MkdirTemp(suite.root, "c")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/bash\nread -r line\neval \"$(jq -r .message.content <<< \"$line\")\"\n"
	for _, from := range real {
		b, err := os.ReadFile(filepath.Join(from, "package.json"))
		if err != nil {
			t.Fatal(err)
		}
		var marker map[string]any
		if err := json.Unmarshal(b, &marker); err != nil {
			t.Fatal(err)
		}
		marker["size"] = len(script)
		if b, err = json.Marshal(marker); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(cache, "cli", filepath.Base(from))
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, "package.json"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, "claude"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	return prepare(t, append([]string{"STROMBOLI_CACHE_DIR=" + cache, "STROMBOLI_AGENT_IMAGE=" + suite.image}, env...)...)
}

const rogueResult = `echo '{"type":"result","subtype":"success","is_error":false,"result":"the end","terminal_reason":"completed"}'`

// TestRogueAgent: lines that no CLI prints are kept, cut or replaced, and the
// run goes on to its end.
func TestRogueAgent(t *testing.T) {
	s := rogue(t, "STROMBOLI_RUNS_MAX=4")
	says := func(script string) stromboli.RunSpec { return stromboli.RunSpec{Prompt: script} }
	lines := func(t *testing.T, r endedRun, stream string) []string {
		t.Helper()
		var all []string
		for _, e := range r.events {
			var d stromboli.OutputData
			if e.Type == stromboli.EventOutput && json.Unmarshal(e.Data, &d) == nil && d.Stream == stream {
				all = append(all, d.Line)
			}
		}
		return all
	}
	s.fleet(t, []fleetRun{
		{"a line of 50 MB", says("head -c 52428800 /dev/zero | tr '\\0' x; echo; echo after; " + rogueResult), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			var cut stromboli.CutLineData
			if !r.first(t, stromboli.EventCut, &cut) || cut.Kept != 8<<20 || cut.Kept+cut.Dropped != 50<<20 {
				t.Errorf("cut is %+v", cut)
			}
			if got := lines(t, r, "stdout"); len(got) != 2 || got[0] != "after" || r.Output != "the end" {
				t.Errorf("%d lines, output %q", len(got), r.Output)
			}
			for _, e := range r.events {
				if e.Type != stromboli.EventOutput {
					continue
				}
				// Too large to be sent inline: by reference, as far as it is kept.
				var ref stromboli.CutData
				if err := json.Unmarshal(e.Data, &ref); err != nil || !ref.Cut {
					t.Fatalf("the event is %.200s", e.Data)
				}
				a := s.send(t, "GET", ref.Href, "").want(t, 200)
				if n := bytes.Count(a.body, []byte("x")); int64(len(a.body)) != ref.Bytes || n < 8<<20 {
					t.Errorf("the data has %d bytes, %d of the line", len(a.body), n)
				}
				break
			}
		}},
		{"no UTF-8, NUL, CR, escape", says(`printf 'a\xff\xfe\x00b\rc\x1b[31m\n'; ` + rogueResult), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if got := lines(t, r, "stdout"); got[0] != "a\ufffd\x00b\rc\x1b[31m" && got[0] != "a\ufffd\ufffd\x00b\rc\x1b[31m" {
				t.Errorf("the line is %q", got[0])
			}
		}},
		{"lines that look like the CLI's", says(`echo '{"type":"result"'; echo '{"type":"result","result":7,"usage":{"input_tokens":-1},"modelUsage":[]}'; echo null; echo '{"type":"assistant","message":[]}'; echo '[[[['; ` + rogueResult), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
		}},
	})
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}
