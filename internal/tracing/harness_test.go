package tracing_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/tracing"
	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	callerTrace  = "0af7651916cd43dd8448eb211c80319c"
	callerParent = "00-" + callerTrace + "-b7ad6b7169203331-01"
	canary       = "canary-of-what-was-said"
)

// stored is a store of events.
type stored map[string][]stromboli.Event

// Events implements tracing.Events, in pages as a store's.
func (s stored) Events(_ context.Context, id string, after int64, limit int) ([]stromboli.Event, error) {
	all := s[id]
	all = all[min(after, int64(len(all))):]
	return all[:min(limit, len(all))], nil
}

// script makes a run's events, a second apart.
type script struct {
	events []stromboli.Event
	at     time.Time
}

func (s *script) add(typ stromboli.EventType, data any) {
	b, err := json.Marshal(data)
	if err != nil {
		panic(err) // our own types
	}
	s.at = s.at.Add(time.Second)
	s.events = append(s.events, stromboli.Event{Seq: int64(len(s.events) + 1), Type: typ, At: s.at, Data: b})
}

func (s *script) phase(p stromboli.Phase) { s.add(stromboli.EventPhase, stromboli.PhaseData{Phase: p}) }

func (s *script) line(format string, args ...any) {
	s.add(stromboli.EventOutput, stromboli.OutputData{Stream: "stdout", Line: fmt.Sprintf(format, args...)})
}

func (s *script) created(parent string) {
	s.add(stromboli.EventRunCreated, map[string]any{"kind": "sync", "session_id": "session-1", "model": "opus", "traceparent": parent, "prompt": canary})
}

func (s *script) answer(within, id, content string) {
	s.line(`{"type":"assistant","parent_tool_use_id":%q,"message":{"id":%q,"model":"claude-opus-5-5","content":[%s],"usage":{"input_tokens":5,"cache_read_input_tokens":7,"output_tokens":1}}}`, within, id, content)
}

func (s *script) result(within, tool string, failed bool) {
	s.line(`{"type":"user","parent_tool_use_id":%q,"message":{"content":[{"type":"tool_result","tool_use_id":%q,"is_error":%v,"content":%q}]}}`, within, tool, failed, canary)
}

func use(id, name string) string {
	return fmt.Sprintf(`{"type":"tool_use","id":%q,"name":%q,"input":{"command":%q}}`, id, name, canary)
}

func said() string { return fmt.Sprintf(`{"type":"text","text":%q}`, canary) }

// whole is a run with everything: a queue, a sandbox, a failed tool, a subagent.
func whole(parent string) []stromboli.Event {
	s := &script{at: time.Now().Add(-time.Minute).UTC().Truncate(time.Second)}
	s.created(parent)
	s.phase(stromboli.PhaseQueued)
	s.phase(stromboli.PhaseCreating)
	s.phase(stromboli.PhaseStarting)
	s.add(stromboli.EventRunStarted, stromboli.StartedData{Sandbox: "sb1", Start: "cold", Image: "img"})
	s.phase(stromboli.PhaseGenerating)
	s.line(`{"type":"system","subtype":"init","model":"claude-opus-5-5"}`)
	s.answer("", "msg_1", said())
	s.answer("", "msg_1", use("t1", "Bash"))
	s.result("", "t1", true)
	s.answer("", "msg_2", use("t2", "Task"))
	s.answer("t2", "msg_3", use("t3", "Read"))
	s.result("t2", "t3", false)
	s.answer("t2", "msg_4", said())
	s.result("", "t2", false)
	s.answer("", "msg_5", said())
	s.line(`{"type":"result","subtype":"success","result":%q}`, canary)
	s.phase(stromboli.PhaseFinishing)
	s.add(stromboli.EventRunFinished, stromboli.Outcome{
		Status: stromboli.Completed, Output: canary, Usage: &stromboli.Usage{Model: "claude-opus-5-5", InputTokens: 20, CacheReadInputTokens: 30, OutputTokens: 9},
	})
	return s.events
}

// lockedLog is a log that the test reads while it is written.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tracer is one that runs.
type tracer struct {
	*tracing.Tracer
	log  *lockedLog
	stop func() time.Duration // tells how long it took
}

func start(t *testing.T, endpoint string, events stored, change ...func(*tracing.Config)) *tracer {
	t.Helper()
	e, err := tracing.ParseEndpoint(endpoint, "", false)
	if err != nil {
		t.Fatal(err)
	}
	log := &lockedLog{}
	cfg := tracing.Config{
		Endpoint: e, ServiceName: "svc", Version: "v1", SampleRatio: 1, Agents: true, Events: events,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&cfg)
	}
	tr, err := tracing.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	stop := sync.OnceValue(func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		return time.Since(began)
	})
	t.Cleanup(func() { stop() })
	return &tracer{tr, log, stop}
}

// byName finds the only span of a name.
func byName(t *testing.T, spans []tracingtest.Span, name string) tracingtest.Span {
	t.Helper()
	var found []tracingtest.Span
	for _, s := range spans {
		if s.GetName() == name {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans %q, want one", len(found), name)
	}
	return found[0]
}
