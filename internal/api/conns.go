package api

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Connections above a cap are not left to wait, which would look like a dead
// server: up to overflowMax of them are accepted for overflowLife, in which one
// request is answered: a probe of health as always, anything else by 503. When
// those are used up too, the oldest of them makes way.
const (
	overflowMax  = 32
	overflowLife = 3 * time.Second
)

// gate caps the connections of a server, in all and for each address. Before a
// newcomer counts as one too many, a connection that waits for its client's
// next request is closed for it.
type gate struct {
	max, perAddress int

	mu       sync.Mutex
	conns    map[*conn]struct{}   // within the caps
	of       map[netip.Prefix]int // places taken
	shared   int                  // places of requests beside the first on their connection
	overflow []*conn              // oldest first
}

func newGate(most, perAddress int) *gate {
	return &gate{max: most, perAddress: perAddress, conns: make(map[*conn]struct{}), of: make(map[netip.Prefix]int)}
}

// conn is a connection that a gate knows.
type conn struct {
	jsonConn
	gate    *gate
	from    netip.Prefix
	idle    time.Time // since when it waits for a request; zero: it doesn't
	tooMuch bool
	until   time.Time // of one too many
	// requests is how many of its requests are being answered, for HTTP/2.
	requests int
	once     sync.Once
}

// listener accepts through a gate.
type listener struct {
	net.Listener
	gate *gate
}

// Accept never waits for a free place.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.gate.admit(c), nil
}

func (g *gate) admit(raw net.Conn) *conn {
	c := &conn{jsonConn: jsonConn{raw}, gate: g, from: networkOf(raw.RemoteAddr())}
	g.mu.Lock()
	var evicted *conn
	if g.of[c.from] >= g.perAddress {
		evicted = g.idlest(func(o *conn) bool { return o.from == c.from })
	} else if len(g.conns)+g.shared >= g.max {
		evicted = g.idlest(func(*conn) bool { return true })
	}
	if evicted != nil {
		g.forget(evicted)
	}
	if g.of[c.from] < g.perAddress && len(g.conns)+g.shared < g.max {
		g.conns[c] = struct{}{}
		g.of[c.from]++
	} else {
		c.tooMuch, c.until = true, time.Now().Add(overflowLife)
		g.overflow = append(g.overflow, c)
		if len(g.overflow) > overflowMax {
			evicted = g.overflow[0]
			g.overflow = g.overflow[1:]
		}
	}
	g.mu.Unlock()
	if evicted != nil {
		_ = evicted.Close()
	}
	if c.tooMuch {
		_ = c.Conn.SetDeadline(c.until)
	}
	return c
}

// idlest is the connection of some that has waited longest for a request.
func (g *gate) idlest(of func(*conn) bool) *conn {
	var best *conn
	for c := range g.conns {
		if !c.idle.IsZero() && of(c) && (best == nil || c.idle.Before(best.idle)) {
			best = c
		}
	}
	return best
}

// forget takes a connection out of the count; g.mu is held.
func (g *gate) forget(c *conn) {
	if _, counted := g.conns[c]; counted {
		delete(g.conns, c)
		g.release(c.from)
		return
	}
	for i, o := range g.overflow {
		if o == c {
			g.overflow = append(g.overflow[:i:i], g.overflow[i+1:]...)
			return
		}
	}
}

// release gives an address's place back; g.mu is held.
func (g *gate) release(from netip.Prefix) {
	if g.of[from]--; g.of[from] == 0 {
		delete(g.of, from)
	}
}

// watch is the HTTP server's ConnState hook.
func (g *gate) watch(nc net.Conn, state http.ConnState) {
	c, ok := gated(nc)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.idle = (time.Time{}); state == http.StateIdle {
		c.idle = time.Now()
	}
}

// Close gives the place back.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.gate.mu.Lock()
		defer c.gate.mu.Unlock()
		c.gate.forget(c)
	})
	return c.jsonConn.Close()
}

// The deadlines of one too many are its own: the HTTP server would lift them.

func (c *conn) bounded(t time.Time) time.Time {
	if c.tooMuch && (t.IsZero() || t.After(c.until)) {
		return c.until
	}
	return t
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.bounded(t)) }

// SetReadDeadline sets the deadline of reads.
func (c *conn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.bounded(t)) }

// SetWriteDeadline sets the deadline of writes.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.bounded(t)) }

// networkOf is what counts as one address: an IPv4 address, or the 64 bits of an
// IPv6 address that one customer has all of. Others than TCP are one.
func networkOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	return network(tcp.AddrPort().Addr().Unmap().WithZone(""))
}

// network is what counts as one address.
func network(ip netip.Addr) netip.Prefix {
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

type connKey struct{}

// known is the HTTP server's ConnContext hook.
func known(ctx context.Context, c net.Conn) context.Context {
	if g, ok := gated(c); ok {
		return context.WithValue(ctx, connKey{}, g)
	}
	return ctx
}

// tooMany reports whether a request came in on a connection above a cap, and
// may not be answered there.
func tooMany(r *http.Request) bool {
	c, ok := r.Context().Value(connKey{}).(*conn)
	return ok && c.tooMuch
}

// isProbe reports whether a path is one that tells of the server's health.
func isProbe(path string) bool {
	return path == "/health" || path == "/livez" || path == "/readyz"
}
