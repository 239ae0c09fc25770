package shim

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// PeerConfig says whom a Peer listens for.
type PeerConfig struct {
	// Path is the socket that the sandbox's shim dials.
	Path string
	// SandboxID and Token must be in the hello.
	SandboxID, Token string
	// PeerUID returns what uid the shim must have on this side. It may block
	// until that is known. Nil: any uid.
	PeerUID func(context.Context) (PeerRule, error)
	// Alive is asked, at growing intervals, while no shim is connected. It
	// says true also for a sandbox that is still being made; false is final:
	// everything then ends with ErrGone. An error is asked again. Nil: alive.
	Alive func(context.Context) (bool, error)
	// Log gets what is odd about callers. Nil: nobody does.
	Log *slog.Logger
}

// PeerRule says which uid a caller must have on this side.
type PeerRule struct {
	UID uint32
	// Not turns the rule round: any uid but that one. It is for a server that
	// can't know the shim's uid, but knows the agent's.
	Not bool
}

// Allows reports whether a caller of this uid is taken.
func (r PeerRule) Allows(uid uint32) bool { return (uid == r.UID) != r.Not }

// Peer is the server's end of the line to one shim. Its methods may be called
// from any goroutine, before the shim is there too, and outlive reconnects.
// They need Run to be running. Every method that takes a context returns when
// that ends; the request may be carried out all the same, and repeating it is
// harmless. Errors from the other side are RemoteErrors.
type Peer struct {
	cfg   PeerConfig
	log   *slog.Logger
	l     *net.UnixListener
	stop  chan struct{}
	lost  chan struct{} // one slot: the connection has ended
	ready chan struct{} // closed by the first accepted hello
	beat  time.Duration // between heartbeats
	speak Versions      // the versions of the protocol that are spoken

	mu     sync.Mutex
	err    error // final: ErrGone, ErrClosed or a version's refusal
	hello  Hello
	conn   *peerConn
	lastID uint64
	calls  map[uint64]*call
	wake   chan struct{} // closed and replaced when lines, conn or err change

	// What the consumer has asked for and what has come of it: lines holds
	// every line above base that has arrived, in order.
	reading  bool
	gen      uint64
	base     int64
	lines    []Line
	buffered int64 // bytes of lines
	acked    int64
}

// Listen makes a Peer whose socket exists on return, taking it over from an
// earlier one.
func Listen(cfg PeerConfig) (*Peer, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l, err := unixsock.Listen(cfg.Path)
	if err != nil {
		return nil, err
	}
	return &Peer{
		cfg: cfg, log: log.With("sandbox", cfg.SandboxID), l: l, beat: beat, speak: Versions{MinVersion, MaxVersion},
		stop: make(chan struct{}), lost: make(chan struct{}, 1), ready: make(chan struct{}),
		calls: map[uint64]*call{}, wake: make(chan struct{}),
	}, nil
}

// Run accepts the shim until ctx ends (its error), Close is called (nil) or
// the sandbox is gone (ErrGone). On return no goroutine of the Peer is left and
// every waiting call has ended. It is called once.
func (p *Peer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() { p.accept(ctx) })
	if p.cfg.Alive != nil {
		work.Go(func() { p.watch(ctx) })
	}
	select {
	case <-ctx.Done():
		p.end(ErrClosed)
	case <-p.stop:
	}
	err := ctx.Err()
	cancel()
	_ = p.l.Close()
	p.mu.Lock()
	final, conn := p.err, p.conn
	p.mu.Unlock()
	if conn != nil {
		conn.close()
	}
	work.Wait()
	if err != nil || errors.Is(final, ErrClosed) {
		return err
	}
	return final
}

// Close ends the Peer; the shim goes on and waits for the next one.
func (p *Peer) Close() error {
	p.end(ErrClosed)
	if err := p.l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// end makes err the answer to everything that waits and will wait. The first
// end counts.
func (p *Peer) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	close(p.stop)
	for id, c := range p.calls {
		delete(p.calls, id)
		c.finish(callResult{err: err})
	}
	p.broadcast()
}

// broadcast wakes everybody who waits for lines or a connection; mu is held.
func (p *Peer) broadcast() {
	close(p.wake)
	p.wake = make(chan struct{})
}

// Ready waits for the first shim that was accepted and returns its hello.
func (p *Peer) Ready(ctx context.Context) (Hello, error) {
	select {
	case <-p.ready:
	case <-p.stop:
	case <-ctx.Done():
		return Hello{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hello.BootID == "" {
		return Hello{}, p.err
	}
	return p.hello, nil
}

// Gone tells the Peer what Alive would: that the sandbox is gone. Lines that
// have arrived can still be read.
func (p *Peer) Gone() { p.end(ErrGone) }

const (
	aliveFirst = 100 * time.Millisecond
	aliveLast  = 5 * time.Second
	aliveAsk   = 30 * time.Second // one question's limit
)

// watch asks whether the sandbox is alive while its shim is not connected.
func (p *Peer) watch(ctx context.Context) {
	delay := aliveFirst
	for wait(ctx, delay) {
		if p.connected() {
			select {
			case <-p.lost:
			case <-ctx.Done():
				return
			}
			delay = aliveFirst
			continue
		}
		ask, cancel := context.WithTimeout(ctx, aliveAsk)
		alive, err := p.cfg.Alive(ask)
		cancel()
		if err != nil && ctx.Err() == nil {
			p.log.Warn("asking whether the sandbox is alive", "error", err)
		}
		// A shim that came while we asked is proof of the contrary.
		if err == nil && !alive && !p.connected() {
			p.end(ErrGone)
			return
		}
		delay = min(2*delay, aliveLast)
	}
}

func (p *Peer) connected() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != nil
}

const (
	maxStrangers = 8 // handshakes at one time
	helloTimeout = 10 * time.Second
)

// accept takes connections until the listener closes, and waits for them.
func (p *Peer) accept(ctx context.Context) {
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, maxStrangers)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := p.l.AcceptUnix()
		if err != nil {
			<-slots
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) || !wait(ctx, retryLast) {
				return
			}
			p.log.Warn("accepting a shim", "error", err)
			continue
		}
		conns.Go(func() {
			c := p.greet(ctx, conn)
			<-slots
			if c != nil {
				p.serve(ctx, c)
			}
		})
	}
}
