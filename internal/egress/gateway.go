package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// gateway is all sandboxes of the process and what they share.
type gateway struct {
	dir      string
	log      *slog.Logger
	demo     http.Handler
	dialer   *dialer
	model    *http.Transport
	buffers  *bufferPool
	settings atomic.Pointer[settings] // nil until configured
	idle     time.Duration            // of a tunnel
	maxConns int                      // of one sandbox
	headers  time.Duration            // for a request's headers to come
	maxOpen  int                      // of those, that are opened

	mu    sync.Mutex
	doors map[string]*door
	over  bool // no new doors
}

// tunnelIdle is how long a tunnel may be silent in both directions.
const tunnelIdle = 15 * time.Minute

func newGateway(cfg ServeConfig) *gateway {
	return &gateway{
		dir:      cfg.Dir,
		log:      cfg.Log,
		demo:     cfg.Demo,
		dialer:   newDialer(),
		buffers:  &bufferPool{},
		idle:     tunnelIdle,
		maxConns: maxConns,
		headers:  headerLimit,
		maxOpen:  maxOpened,
		doors:    map[string]*door{},
		model: &http.Transport{
			Proxy: modelProxy,
			// HTTP/1.1 only: with HTTP/2 one connection's fate, flow control and
			// buffers would be shared by all sandboxes.
			DialContext:            (&net.Dialer{Timeout: dialLimit, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.RootCAs},
			TLSHandshakeTimeout:    dialLimit,
			MaxIdleConnsPerHost:    64,
			IdleConnTimeout:        30 * time.Second,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: 1 << 20,
			DisableCompression:     true, // bytes pass as they come
			// No ResponseHeaderTimeout: a model may think as long as it likes.
		},
	}
}

func (g *gateway) configure(c Config) error {
	s, err := c.compile()
	if err != nil {
		return err
	}
	if s.demo && g.demo == nil {
		return errors.New("demo: this process has no scripted model")
	}
	for _, e := range append(slices.Collect(maps.Values(s.tenants)), s.endpoint) {
		if e.clear() {
			g.log.Warn("egress: the model's endpoint is not HTTPS: the credential goes there in the clear", "host", e.base.Host)
		}
	}
	g.settings.Store(s)
	for _, d := range g.list() {
		d.closed() // an idle connection may lead where the new configuration doesn't
	}
	g.log.Info("egress: configured", "config", c.String())
	return nil
}

func loopbackHost(host string) bool {
	_, addr, err := policy.ParseHost(host)
	return host == "localhost" || (err == nil && addr.IsLoopback())
}

// add listens for a sandbox, or brings its registration up to date: what that no
// more permits has been cut on return.
func (g *gateway) add(reg Sandbox) error {
	if err := reg.validate(); err != nil {
		return err
	}
	d, cut, err := g.admit(reg)
	if d != nil && reg.Closed {
		d.close()
		d.audit.endAll() // what a predecessor still has open, it closes
	}
	if len(cut) > 0 {
		d.closed() // an idle connection may lead where the new rules don't
		awaitEnd(cut)
	}
	return err
}

func (g *gateway) admit(reg Sandbox) (*door, []*flow, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		return nil, nil, errors.New("egress is ending")
	}
	d, ok := g.doors[reg.ID]
	if !ok {
		records, err := openAudit(g.dir, reg.ID)
		if err != nil {
			return nil, nil, fmt.Errorf("sandbox %s: %w", reg.ID, err)
		}
		d = newDoor(reg, records, g.maxConns, g.log)
		h := newHandler(g, d)
		d.closed = h.close
		d.serve(h, g.headers)
	}
	if reg.Closed {
		g.doors[reg.ID] = d
		return d, nil, nil
	}
	cut, err := d.register(reg)
	switch {
	case err == nil:
		g.doors[reg.ID] = d
	case !ok:
		d.close()
		d.audit.close()
	}
	return d, cut, err
}

// records are a sandbox's, in order; see audit.read.
func (g *gateway) records(ctx context.Context, id string, after int64, limit int, wait time.Duration) ([]stromboli.EgressRecord, bool) {
	g.mu.Lock()
	d, ok := g.doors[id]
	g.mu.Unlock()
	if !ok {
		return nil, false
	}
	if d.ctx.Err() != nil { // nothing more will come
		wait = 0
	}
	return d.audit.read(ctx, after, limit, wait), true
}

// take adds a record of a predecessor's.
func (g *gateway) take(id string, r delivery) bool {
	g.mu.Lock()
	d, ok := g.doors[id]
	g.mu.Unlock()
	if ok {
		d.audit.end(r.Open, r.Record)
	}
	return ok
}

// network is what a sandbox may reach by now; not of one that is closed.
func (g *gateway) network(id string) (stromboli.Network, bool) {
	g.mu.Lock()
	d, ok := g.doors[id]
	g.mu.Unlock()
	if !ok || d.ctx.Err() != nil {
		return stromboli.Network{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reg.Network, true
}

// remove ends a sandbox's connections and deletes its records; an unknown one
// is fine.
func (g *gateway) remove(id string) {
	g.mu.Lock()
	d := g.doors[id]
	delete(g.doors, id)
	g.mu.Unlock()
	if d != nil {
		d.close()
		d.audit.remove()
	} else if validID(id) {
		_ = os.Remove(auditPath(g.dir, id)) // of a process before
	}
}

func (g *gateway) list() []*door {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]*door, 0, len(g.doors))
	for _, d := range g.doors {
		list = append(list, d)
	}
	return list
}

// sandboxes returns the ids and the number of all open connections.
func (g *gateway) sandboxes() (ids []string, connections int) {
	ids = []string{}
	for _, d := range g.list() {
		d.mu.Lock()
		ids = append(ids, d.reg.ID)
		connections += len(d.conns)
		d.mu.Unlock()
	}
	return ids, connections
}

func (g *gateway) stopListening() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	for _, d := range g.list() {
		d.stopListening()
	}
}

// drain waits for what is in flight until ctx ends, then closes everything.
func (g *gateway) drain(ctx context.Context) {
	var wg sync.WaitGroup
	for _, d := range g.list() {
		wg.Go(func() {
			d.drain(ctx)
			d.close()
			d.audit.close()
		})
	}
	wg.Wait()
	g.model.CloseIdleConnections()
}

// bufferPool implements httputil.BufferPool; slices are kept by pointer so
// that putting one back allocates nothing.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements httputil.BufferPool.
func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (p *bufferPool) Put(b []byte) {
	if cap(b) >= bufferSize {
		p.pool.Put((*[bufferSize]byte)(b[:bufferSize]))
	}
}

// describe tells an error's kind to a sandbox without naming what it should not know.
func describe(err error) string {
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return "timed out"
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return fmt.Sprintf("name not resolved (%s)", dns.Err)
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not valid: " + cert.Err.Error()
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err.Error()
	}
	return err.Error()
}
