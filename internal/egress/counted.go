package egress

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// countedConn is a sandbox's connection whose bytes are counted.
type countedConn struct {
	*conn
	early         io.Reader // read before the connection; nil once it is at its end
	read, written atomic.Int64
	once          sync.Once
	closed        chan struct{} // by Close, which net/http calls when it is done
}

// Read implements io.Reader.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.next(p)
	c.read.Add(int64(n))
	return n, err
}

func (c *countedConn) next(p []byte) (int, error) {
	if c.early != nil {
		n, err := c.early.Read(p)
		if err != nil {
			c.early = nil
		}
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err //nolint:wrapcheck // net.Conn's own error
		}
	}
	return c.conn.Read(p) //nolint:wrapcheck // see above
}

// Write implements io.Writer.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	c.written.Add(int64(n))
	return n, err //nolint:wrapcheck // net.Conn's own error
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.conn.Close()
}

// endIdle ends the connection when nothing has moved on it for idle; it returns
// when the connection is closed.
func (c *countedConn) endIdle(idle time.Duration) {
	tick := time.NewTicker(idle / 4)
	defer tick.Stop()
	moved, since := int64(-1), time.Now()
	for {
		select {
		case <-tick.C:
		case <-c.closed:
			return
		}
		if n := c.read.Load() + c.written.Load(); n != moved {
			moved, since = n, time.Now()
		} else if time.Since(since) >= idle {
			_ = c.conn.Close() // whoever uses it closes the rest
		}
	}
}

// oneConn is a listener of one connection.
type oneConn struct {
	addr   net.Addr
	next   chan net.Conn
	closed chan struct{}
}

// Accept implements net.Listener: the connection, and when that is closed the
// end.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	default:
	}
	<-l.closed
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l *oneConn) Close() error { return nil }

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.addr }
