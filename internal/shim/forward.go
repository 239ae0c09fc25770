package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// Preamble is the line that goes before the bytes of every forwarded
// connection, followed by the sandbox's token and a newline.
const Preamble = "STROMBOLI/1 "

const (
	retryFirst = 20 * time.Millisecond
	retryLast  = 250 * time.Millisecond
)

// forwarder is the sandbox's one way out: a loopback port whose connections
// go on to the egress process. While that is away, connections are held.
type forwarder struct {
	addr     string
	socket   string
	preamble []byte
	hold     time.Duration
	slots    chan struct{}
	l        net.Listener
}

func newForwarder(cfg Config, socket string) *forwarder {
	return &forwarder{
		addr: cfg.ForwardAddr, socket: socket, preamble: []byte(Preamble + cfg.Token + "\n"),
		hold: time.Duration(cfg.HoldMS) * time.Millisecond, slots: make(chan struct{}, cfg.MaxForwards),
	}
}

func (f *forwarder) listen(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", f.addr)
	if err != nil {
		return fmt.Errorf("forwarder: %w", err)
	}
	f.l = l
	return nil
}

// serve forwards until ctx ends, and then waits for its connections' end.
// At the limit it accepts no more: callers wait in the kernel's queue.
func (f *forwarder) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = f.l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := f.l.Accept()
		if err != nil {
			<-f.slots
			// Out of descriptors or memory; nothing else fails while we listen.
			if !wait(ctx, retryLast) {
				return
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-f.slots }()
			f.forward(ctx, conn.(*net.TCPConn))
		})
	}
}

func (f *forwarder) forward(ctx context.Context, client *net.TCPConn) {
	defer client.Close() //nolint:errcheck // both ends know by now
	egress, err := f.reach(ctx, client)
	if err != nil {
		return
	}
	defer egress.Close() //nolint:errcheck // both ends know by now
	stop := context.AfterFunc(ctx, func() { _, _ = client.Close(), egress.Close() })
	defer stop()
	relay(client, egress)
}

// reach connects to the egress process, trying as long as the hold lasts and
// the client has not reset its connection.
func (f *forwarder) reach(ctx context.Context, client *net.TCPConn) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.hold)
	defer cancel()
	for delay := retryFirst; ; delay = min(2*delay, retryLast) {
		conn, err := unixsock.Dial(ctx, f.socket)
		if err == nil {
			if _, err = conn.Write(f.preamble); err == nil {
				return conn, nil
			}
			_ = conn.Close() // egress died between the two
		}
		if isReset(client) {
			return nil, unix.ECONNRESET
		}
		if !wait(ctx, delay) {
			return nil, err
		}
	}
}

// isReset reports whether the client's end is gone for good. A client that
// only closed its sending side may still wait for the answer.
func isReset(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	const tcpClose = 7 // TCP_CLOSE of the kernel's states
	reset := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		reset = err == nil && info.State == tcpClose
	})
	return reset || err != nil
}

type halfCloser interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// relay copies both ways until both directions have ended. The end of one is
// passed on as a half-close; an error ends both.
func relay(a, b halfCloser) {
	var wg sync.WaitGroup
	pass := func(dst, src halfCloser) {
		// Of these types io.Copy splices in the kernel.
		_, err := io.Copy(dst, src)
		if err == nil {
			err = dst.CloseWrite()
		}
		if err != nil {
			_, _ = a.Close(), b.Close()
		}
	}
	wg.Go(func() { pass(a, b) })
	pass(b, a)
	wg.Wait()
}

// wait waits for d; false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
