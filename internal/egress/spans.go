package egress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
)

const (
	// spansPath is where agents export spans to, by OTLP.
	spansPath = "/v1/traces"
	// maxExports and maxExported bound what is kept of one sandbox's exports, in
	// requests and in bytes.
	maxExports  = 256
	maxExported = 1 << 20
)

// exports are what a sandbox's agent has exported, as it came: this process holds
// the credential, and has no business with what a sandbox makes up. They are
// lost with the process.
type exports struct {
	mu     sync.Mutex
	bodies [][]byte
	size   int
}

// add keeps a body if there is room for it.
func (e *exports) add(body []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.bodies) >= maxExports || e.size+len(body) > maxExported {
		return false
	}
	e.bodies = append(e.bodies, body)
	e.size += len(body)
	return true
}

func (e *exports) all() [][]byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([][]byte{}, e.bodies...)
}

// takeSpans answers an export. What there is no room for is refused for good, so
// that the agent doesn't try again.
func (h *handler) takeSpans(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("Content-Encoding") != "" {
		proxyFailure(w, http.StatusUnsupportedMediaType, "spans are taken by POST, as application/x-protobuf, not compressed")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxExported))
	if err != nil || !h.door.spans.add(body) {
		proxyFailure(w, http.StatusRequestEntityTooLarge, "no more spans of this run are taken")
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty answer: all were taken
}

// getSpans gives the server what a sandbox's agent has exported.
func (c *control) getSpans(w http.ResponseWriter, r *http.Request) {
	c.g.mu.Lock()
	d, ok := c.g.doors[r.PathValue("id")]
	c.g.mu.Unlock()
	if !ok {
		http.Error(w, "no such sandbox", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(d.spans.all())
}

// Spans returns what a sandbox's agent has exported, as it came.
func (c *Client) Spans(ctx context.Context, id string) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/sandboxes/"+url.PathEscape(id)+"/spans", nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var all [][]byte
	if err := json.NewDecoder(io.LimitReader(resp.Body, 2*maxExported)).Decode(&all); err != nil {
		return nil, fmt.Errorf("egress: spans of %s: %w", id, err)
	}
	return all, nil
}

// Spans returns what a sandbox's agent has exported, as it came.
func (s *Supervisor) Spans(ctx context.Context, id string) ([][]byte, error) {
	if err := s.waitUp(ctx); err != nil {
		return nil, err
	}
	return s.client.Spans(ctx, id)
}
