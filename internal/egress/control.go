package egress

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// maxControlBody holds the endpoints of as many tenants as a file of credentials
// can name, each with the common headers.
const maxControlBody = 16 << 20

// Status is what an egress process says of itself.
type Status struct {
	Protocol    int      `json:"protocol"`
	Build       string   `json:"build"`
	PID         int      `json:"pid"`
	Configured  bool     `json:"configured"`
	Sandboxes   []string `json:"sandboxes"`
	Connections int      `json:"connections"` // open, of all sandboxes
}

// control is the API for the server, on a socket that only its user reaches.
type control struct {
	g      *gateway
	cfg    ServeConfig
	server *http.Server

	shutdown  chan struct{} // closed when a server asks for the end
	failed    chan struct{} // closed when serve has returned
	unneeded  chan struct{} // closed when nobody needs this process
	done      chan struct{} // closed by close
	askedOnce sync.Once

	watchers atomic.Int64 // servers that are there
	began    time.Time
	lastSeen atomic.Int64 // how long after began a server was last heard, in nanoseconds
}

func newControl(g *gateway, cfg ServeConfig) *control {
	c := &control{
		began: time.Now(),
		g:     g, cfg: cfg,
		shutdown: make(chan struct{}), failed: make(chan struct{}),
		unneeded: make(chan struct{}), done: make(chan struct{}),
	}
	c.seen()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.getStatus)
	mux.HandleFunc("GET /watch", c.watch)
	mux.HandleFunc("PUT /config", c.putConfig)
	mux.HandleFunc("PUT /sandboxes/{id}", c.putSandbox)
	mux.HandleFunc("DELETE /sandboxes/{id}", c.deleteSandbox)
	mux.HandleFunc("GET /sandboxes/{id}/records", c.getRecords)
	mux.HandleFunc("POST /sandboxes/{id}/records", c.postRecord)
	mux.HandleFunc("GET /sandboxes/{id}/network", c.getNetwork)
	mux.HandleFunc("GET /sandboxes/{id}/spans", c.getSpans)
	mux.HandleFunc("POST /shutdown", c.postShutdown)
	c.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.seen()
			r.Body = http.MaxBytesReader(w, r.Body, maxControlBody)
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerLimit,
	}
	return c
}

// seen notes that somebody was here, on the monotonic clock.
func (c *control) seen() { c.lastSeen.Store(int64(time.Since(c.began))) }

func (c *control) serve(l *net.UnixListener) error {
	defer close(c.failed)
	if err := c.server.Serve(ownUserListener{l}); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("egress: control: %w", err)
	}
	return nil
}

// close ends the API, and with it the connections by which servers watch.
func (c *control) close() {
	close(c.done)
	_ = c.server.Close()
}

// watchNeed finds out that nobody needs this process any more.
func (c *control) watchNeed() {
	tick := time.NewTicker(min(max(c.cfg.IdleTimeout/8, 5*time.Millisecond), 5*time.Second))
	defer tick.Stop()
	busy := time.Now()
	for {
		select {
		case <-tick.C:
		case <-c.done:
			return
		}
		sandboxes, connections := c.g.sandboxes()
		now := time.Now()
		if c.watchers.Load() > 0 || connections > 0 {
			busy = now
		}
		alone := now.Sub(c.began) - time.Duration(c.lastSeen.Load())
		if c.watchers.Load() == 0 && ((len(sandboxes) == 0 && alone >= c.cfg.IdleTimeout) ||
			(now.Sub(busy) >= c.cfg.AbandonAfter && alone >= c.cfg.AbandonAfter)) {
			close(c.unneeded)
			return
		}
	}
}

func (c *control) getStatus(w http.ResponseWriter, _ *http.Request) {
	ids, connections := c.g.sandboxes()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(Status{
		Protocol: protocol, Build: c.cfg.Build, PID: os.Getpid(),
		Configured: c.g.settings.Load() != nil, Sandboxes: ids, Connections: connections,
	})
}

// watch is held open for as long as both live: each end learns of the other's death.
func (c *control) watch(w http.ResponseWriter, r *http.Request) {
	c.watchers.Add(1)
	defer func() {
		c.seen()
		c.watchers.Add(-1)
	}()
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return
	}
	select {
	case <-r.Context().Done():
	case <-c.done:
	}
}

func (c *control) putConfig(w http.ResponseWriter, r *http.Request) {
	var cfg Config
	if !decode(w, r, &cfg) {
		return
	}
	answer(w, c.g.configure(cfg))
}

func (c *control) putSandbox(w http.ResponseWriter, r *http.Request) {
	var reg Sandbox
	if !decode(w, r, &reg) {
		return
	}
	if reg.ID != r.PathValue("id") {
		http.Error(w, "id: not the one of the path", http.StatusBadRequest)
		return
	}
	answer(w, c.g.add(reg))
}

func (c *control) deleteSandbox(w http.ResponseWriter, r *http.Request) {
	c.g.remove(r.PathValue("id"))
	w.WriteHeader(http.StatusNoContent)
}

// maxRecords is what one answer holds at most.
const maxRecords = 1000

// getRecords answers the records after a position, which are then forgotten up
// to it; it waits for one for as long as it is asked to.
func (c *control) getRecords(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	after, err1 := strconv.ParseInt(q.Get("after"), 10, 64)
	limit, err2 := strconv.Atoi(q.Get("limit"))
	wait, err3 := time.ParseDuration(q.Get("wait"))
	if err := errors.Join(err1, err2, err3); err != nil || limit < 1 {
		http.Error(w, "after, limit or wait can't be read", http.StatusBadRequest)
		return
	}
	records, ok := c.g.records(r.Context(), r.PathValue("id"), after, min(limit, maxRecords), min(wait, maxRecordsWait))
	if !ok {
		http.Error(w, "no such sandbox", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(records)
}

// postRecord takes a record of a predecessor's.
func (c *control) postRecord(w http.ResponseWriter, r *http.Request) {
	var d delivery
	if !decode(w, r, &d) {
		return
	}
	if !c.g.take(r.PathValue("id"), d) {
		http.Error(w, "no such sandbox", http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// getNetwork tells a predecessor which rules hold by now.
func (c *control) getNetwork(w http.ResponseWriter, r *http.Request) {
	n, ok := c.g.network(r.PathValue("id"))
	if !ok {
		http.Error(w, "no such sandbox", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(n)
}

// maxRecordsWait is the longest wait for a record.
const maxRecordsWait = 30 * time.Second

func (c *control) postShutdown(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Connection", "close")
	w.WriteHeader(http.StatusNoContent)
	_ = http.NewResponseController(w).Flush()
	c.askedOnce.Do(func() { close(c.shutdown) })
}

// decode never repeats the body in its error: it holds the credential.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	dec := json.NewDecoder(r.Body)
	if err := dec.Decode(into); err != nil {
		http.Error(w, "the body can't be read", http.StatusBadRequest)
		return false
	}
	_, _ = io.Copy(io.Discard, r.Body)
	return true
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// ownUserListener takes connections of this process's own user and of root.
type ownUserListener struct{ *net.UnixListener }

// Accept implements net.Listener.
func (l ownUserListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err //nolint:wrapcheck // net/http compares it
		}
		cred, err := unixsock.PeerCred(c)
		if err == nil && (cred.UID == 0 || int64(cred.UID) == int64(os.Geteuid())) {
			return c, nil
		}
		_ = c.Close()
	}
}
