// Package modelstub is a scripted Messages API server: the model of tests,
// benchmarks and the demo. The real agent CLI works against it.
//
// What it answers is decided by the request alone. A prompt may carry a
// directive, `stub: {"steps":[…]}` (see Script); the step played is the number
// of assistant turns that follow that prompt. So the server needs no state, may
// die and come back in the middle of a conversation, and one server plays any
// number of conversations at once. The one exception are steps that misbehave
// only the first few times (Step.Times): those are counted, in memory.
//
// It promises answers of the real API's form (server-sent events, errors,
// token counts) and keeps a bounded record of requests, which tests read over
// HTTP below /_stub/. It holds no credentials and checks none: whoever makes it
// reachable decides who may talk to it.
package modelstub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	defaultMaxRequests = 1000
	defaultMaxBody     = 1 << 20
	defaultMaxTotal    = 64 << 20
	maxRequestBody     = 64 << 20
)

// Config says how a Server behaves. The zero value is a server for tests.
type Config struct {
	// Demo answers prompts without a directive by a small show that uses the
	// agent's Bash and Write tools; otherwise the answer repeats the prompt.
	Demo bool
	// Pace is the pause between two deltas where a step names none.
	Pace time.Duration
	// MaxRequests is how many requests are remembered (default 1,000), MaxBody
	// how many bytes of each body (default 1 MiB, negative: none), MaxTotal how
	// many bytes of all bodies together (default 64 MiB). The oldest go first.
	MaxRequests, MaxBody, MaxTotal int
}

// Server is an http.Handler; make it with New, Demo or NewServer. It is safe
// for concurrent use.
type Server struct {
	cfg Config
	mux *http.ServeMux
	rec *recorder

	mu     sync.Mutex
	faults map[[32]byte]int // how often a step with Times has misbehaved
}

// New returns a server for tests: no pauses, the default bounds.
func New() *Server { return NewServer(Config{}) }

// Demo returns the server of the demo: it remembers no bodies, answers at a
// pace that people can read, and shows the agent's tools at work.
func Demo() *Server {
	return NewServer(Config{Demo: true, Pace: 12 * time.Millisecond, MaxRequests: 100, MaxBody: -1})
}

// NewServer returns a server that behaves as cfg says.
func NewServer(cfg Config) *Server {
	if cfg.MaxRequests <= 0 {
		cfg.MaxRequests = defaultMaxRequests
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.MaxTotal <= 0 {
		cfg.MaxTotal = defaultMaxTotal
	}
	s := &Server{
		cfg:    cfg,
		mux:    http.NewServeMux(),
		rec:    newRecorder(cfg.MaxRequests, max(cfg.MaxBody, 0), cfg.MaxTotal),
		faults: map[[32]byte]int{},
	}
	s.mux.HandleFunc("POST /v1/messages", s.messages)
	s.mux.HandleFunc("POST /v1/messages/count_tokens", s.countTokens)
	s.mux.HandleFunc("HEAD /{$}", func(http.ResponseWriter, *http.Request) {})
	s.mux.HandleFunc("GET /_stub/requests", s.listRequests)
	s.mux.HandleFunc("DELETE /_stub/requests", s.resetRequests)
	s.mux.HandleFunc("POST /_stub/reset", s.resetRequests)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, APIError{Type: "not_found_error", Message: "no such path: " + r.URL.Path})
	})
	return s
}

// ServeHTTP implements http.Handler. An answer that is scripted to be cut ends
// by panicking with http.ErrAbortHandler, as net/http wants it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Requests returns the remembered Messages requests, oldest first; with a key,
// only those whose directive carries it.
func (s *Server) Requests(key string) []Request { return s.rec.list(key) }

// Reset forgets the remembered requests and the counts of Step.Times.
func (s *Server) Reset() {
	s.rec.reset()
	s.mu.Lock()
	clear(s.faults)
	s.mu.Unlock()
}

// ListenAndServe serves h on a loopback address until ctx ends, which it
// returns as nil. ready is called with the address once it listens.
func ListenAndServe(ctx context.Context, addr string, h http.Handler, ready func(net.Addr)) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("model stub: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if ready != nil {
		ready(l.Addr())
	}
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("model stub: %w", err)
	}
	return nil
}

// messages answers POST /v1/messages.
func (s *Server) messages(w http.ResponseWriter, r *http.Request) {
	body, conv, ok := s.read(w, r)
	if !ok {
		return
	}
	script, at, err := conv.script()
	s.rec.add(r, body, script.Key, at)
	if err != nil {
		writeError(w, http.StatusBadRequest, APIError{Type: "invalid_request_error", Message: "stub directive: " + err.Error()})
		return
	}
	step := s.choose(conv, script, at)
	if step.faulty() && step.Times > 0 && !s.misbehaveAgain(script, at, r.Header.Get("X-Claude-Code-Session-Id"), step.Times) {
		step = step.healed()
	}
	newPlayer(w, r, conv, s.cfg.Pace).play(step)
}

// choose returns the step that answers conv.
func (s *Server) choose(conv *conversation, script Script, at int) Step {
	switch {
	case conv.auxiliary():
		return conv.auxiliaryStep()
	case at >= 0 && at < len(script.Steps):
		return script.Steps[at]
	case s.cfg.Demo:
		return demoStep(conv)
	default:
		return defaultStep(conv)
	}
}

// countTokens answers POST /v1/messages/count_tokens with a guess of four bytes a token.
func (s *Server) countTokens(w http.ResponseWriter, r *http.Request) {
	body, _, ok := s.read(w, r)
	if !ok {
		return
	}
	writeJSON(w, http.StatusOK, map[string]int{"input_tokens": tokens(len(body))})
}

func (s *Server) read(w http.ResponseWriter, r *http.Request) ([]byte, *conversation, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBody))
	if err != nil {
		writeError(w, http.StatusRequestEntityTooLarge, APIError{Type: "request_too_large", Message: "the body could not be read: " + err.Error()})
		return nil, nil, false
	}
	conv, err := parseConversation(body)
	if err != nil {
		writeError(w, http.StatusBadRequest, APIError{Type: "invalid_request_error", Message: err.Error()})
		return nil, nil, false
	}
	return body, conv, true
}

func (s *Server) listRequests(w http.ResponseWriter, r *http.Request) {
	list := s.rec.list(r.URL.Query().Get("key"))
	if r.URL.Query().Has("count") {
		writeJSON(w, http.StatusOK, map[string]int{"count": len(list)})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"count": len(list), "requests": list})
}

func (s *Server) resetRequests(w http.ResponseWriter, _ *http.Request) {
	s.Reset()
	w.WriteHeader(http.StatusNoContent)
}

// APIError is the error object of an answer.
type APIError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

func writeError(w http.ResponseWriter, status int, e APIError) {
	writeJSON(w, status, map[string]any{"type": "error", "error": e, "request_id": "req_stub"})
}

// writeJSON ignores a failing write: the client has gone, and nobody is left to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func tokens(n int) int { return n/4 + 1 }
