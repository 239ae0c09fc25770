package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxStreams is how many requests at a time one HTTP/2 connection may have.
const maxStreams = 100

// tlsListener accepts connections through another listener and hands them out once
// they are encrypted. Handshakes go on beside each other, each within a time;
// their number is bounded by the gate below. HTTP/2 connections are handed out
// as *tls.Conn, which net/http wants; others as tlsConn, so that what
// net/http answers by itself is JSON there too.
type tlsListener struct {
	net.Listener
	config  *tls.Config
	timeout time.Duration

	ctx      context.Context // of the handshakes
	stop     context.CancelFunc
	accepted chan accepted
	work     sync.WaitGroup
}

type accepted struct {
	conn net.Conn
	err  error
}

// tlsConn is an encrypted connection for HTTP/1.1.
type tlsConn struct {
	jsonConn
	below *conn
}

// newTLSListener begins to accept; Close ends that and waits for it.
func newTLSListener(ctx context.Context, ln net.Listener, config *tls.Config, timeout time.Duration) *tlsListener {
	config = config.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	s := &tlsListener{Listener: ln, config: config, timeout: timeout, accepted: make(chan accepted)}
	s.ctx, s.stop = context.WithCancel(ctx)
	s.work.Go(s.accept)
	return s
}

func (s *tlsListener) accept() {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			if s.hand(accepted{err: err}) && !errors.Is(err, net.ErrClosed) {
				continue // net/http decides whether it passes, and waits
			}
			return
		}
		s.work.Go(func() { s.shake(c) })
	}
}

// hand gives something to Accept; false: nobody calls it any more.
func (s *tlsListener) hand(a accepted) bool {
	select {
	case s.accepted <- a:
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *tlsListener) shake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
	defer cancel()
	c := tls.Server(raw, s.config)
	if err := c.HandshakeContext(ctx); err != nil {
		if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil {
			refusePlain(plain.Conn)
		}
		_ = raw.Close()
		return
	}
	var out net.Conn = c
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		below, _ := raw.(*conn)
		out = &tlsConn{jsonConn: jsonConn{c}, below: below}
	}
	if !s.hand(accepted{conn: out}) {
		_ = out.Close()
	}
}

// refusePlain tells a client that speaks without TLS so.
func refusePlain(c net.Conn) {
	const body = `{"error":"this server speaks HTTPS only","code":"invalid_request"}`
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}

// Accept returns the next connection that is encrypted.
func (s *tlsListener) Accept() (net.Conn, error) {
	select {
	case a := <-s.accepted:
		return a.conn, a.err
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the handshakes too.
func (s *tlsListener) Close() error {
	err := s.Listener.Close()
	s.stop()
	s.work.Wait()
	return err
}

// gated finds the gate's connection below another.
func gated(c net.Conn) (*conn, bool) {
	switch c := c.(type) {
	case *conn:
		return c, true
	case *tlsConn:
		return c.below, c.below != nil
	case *tls.Conn:
		return gated(c.NetConn())
	}
	return nil, false
}

// share counts a request that has its connection not for itself (HTTP/2): all
// but one of a connection's take a place each, as a connection would. false:
// there is none. What it returns gives the place back.
func share(r *http.Request) (leave func(), ok bool) {
	if r.ProtoMajor < 2 {
		return func() {}, true
	}
	c, known := r.Context().Value(connKey{}).(*conn)
	if !known {
		return func() {}, true
	}
	return c.gate.enter(c)
}

// enter counts a request of a connection.
func (g *gate) enter(c *conn) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.requests > 0 {
		if g.of[c.from] >= g.perAddress || len(g.conns)+g.shared >= g.max {
			return func() {}, false
		}
		g.of[c.from]++
		g.shared++
	}
	c.requests++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if c.requests--; c.requests > 0 {
			g.shared--
			g.release(c.from)
		}
	}, true
}
