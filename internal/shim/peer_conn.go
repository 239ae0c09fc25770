package shim

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

const (
	// lineWindow bounds the lines that wait at the server for their consumer,
	// give or take one line.
	lineWindow = 1 << 20
	// writeTimeout is how long a shim may refuse to read before its connection
	// is dropped; it dials again when it can.
	writeTimeout = 10 * time.Second
)

// peerConn is one accepted connection. Its fields other than conn and r belong
// to the Peer's lock.
type peerConn struct {
	conn *net.UnixConn
	r    *bufio.Reader
	wake chan struct{}    // one slot: something is to be written
	beat <-chan time.Time // when a heartbeat is due; nil for a shim that knows none

	out      [][]byte // frames of calls
	askedGen uint64   // the newest question for lines that was sent
	acked    int64    // the newest acknowledgement that was sent
	received int64    // bytes of lines received, stale ones included
	credit   int64    // the newest credit that was sent
	once     sync.Once
}

func (c *peerConn) close() { c.once.Do(func() { _ = c.conn.Close() }) }

func (c *peerConn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// greet finds out who is calling, and returns nil after refusing it.
func (p *Peer) greet(ctx context.Context, conn *net.UnixConn) *peerConn {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	r := bufio.NewReaderSize(conn, 64<<10)
	c := &peerConn{conn: conn, r: r, wake: make(chan struct{}, 1)}
	hello, version, err := p.check(ctx, conn, r)
	if err == nil && version >= heartbeats {
		c.beat = time.Tick(p.beat)
	}
	if err == nil {
		err = p.attach(c, hello)
	}
	if err == nil {
		// Nothing else is written before serve.
		err = errors.Join(writeFrame(conn, putJSON(frameWelcome, welcome{Version: version})), conn.SetDeadline(time.Time{}))
		if err == nil {
			return c
		}
		p.detach(c)
	}
	if ctx.Err() == nil {
		p.log.Warn("refused a caller", "error", err)
		if re, ok := errors.AsType[*RemoteError](err); ok {
			_ = writeFrame(conn, putJSON(frameRefuse, re)) // courtesy
			if re.Code == CodeVersion {
				p.end(err)
			}
		}
	}
	_ = conn.Close()
	return nil
}

// check reads a stranger's hello, once the kernel has said who it is.
func (p *Peer) check(ctx context.Context, conn *net.UnixConn, r io.Reader) (Hello, int, error) {
	var hello Hello
	if p.cfg.PeerUID != nil {
		cred, err := unixsock.PeerCred(conn)
		if err != nil {
			return hello, 0, err
		}
		ask, cancel := context.WithTimeout(ctx, welcomeTimeout)
		defer cancel()
		want, err := p.cfg.PeerUID(ask)
		if err != nil {
			return hello, 0, fmt.Errorf("finding out the shim's uid: %w", err)
		}
		if !want.Allows(cred.UID) {
			// Not a word to it.
			return hello, 0, fmt.Errorf("caller has uid %d, which is not the shim's (%+v)", cred.UID, want)
		}
	}
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return hello, 0, err
	}
	t, payload, err := readFrame(r, maxHello)
	if err != nil {
		return hello, 0, fmt.Errorf("reading the hello: %w", err)
	}
	if t != frameHello || json.Unmarshal(payload, &hello) != nil {
		return hello, 0, errors.New("the first frame is no hello")
	}
	token := subtle.ConstantTimeCompare([]byte(hello.Token), []byte(p.cfg.Token))
	hello.Token = ""
	if token != 1 || hello.Sandbox != p.cfg.SandboxID || hello.BootID == "" {
		return hello, 0, remotef(CodeRefused, "hello of another sandbox, or with a wrong token")
	}
	version := min(hello.Versions.Max, p.speak.Max)
	if version < max(hello.Versions.Min, p.speak.Min) {
		return hello, 0, remotef(CodeVersion,
			"the sandbox's shim speaks protocol versions %d to %d, this server %d to %d",
			hello.Versions.Min, hello.Versions.Max, p.speak.Min, p.speak.Max)
	}
	return hello, version, nil
}

// attach makes c the one connection. The first hello wins: of another boot
// none is accepted after it; of the same boot the newest replaces the others.
func (p *Peer) attach(c *peerConn, hello Hello) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.hello.BootID == "" {
		p.hello = hello
		close(p.ready)
	} else if p.hello.BootID != hello.BootID {
		return remotef(CodeRefused, "another shim of this sandbox came first")
	}
	if p.conn != nil {
		p.conn.close()
		p.failStreams()
	}
	p.conn = c
	p.broadcast()
	for _, call := range p.pendingCalls() {
		c.out = append(c.out, call.frame)
	}
	if p.reading {
		// What the old connection still brings is of an older generation.
		p.gen++
	}
	c.nudge()
	return nil
}

// detach forgets a connection that has ended.
func (p *Peer) detach(c *peerConn) {
	c.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != c {
		return
	}
	p.conn = nil
	p.failStreams()
	select {
	case p.lost <- struct{}{}:
	default:
	}
}

// serve reads and writes an accepted connection until it ends.
func (p *Peer) serve(ctx context.Context, c *peerConn) {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { p.write(c, done) })
	defer writer.Wait()
	defer p.detach(c)
	defer close(done)
	for {
		t, payload, err := readFrame(c.r, maxFrame)
		if err == nil {
			err = p.handle(c, t, payload)
		}
		if err != nil {
			if errors.Is(err, errProtocol) || errors.Is(err, errRecord) {
				p.log.Warn("dropping the shim's connection", "error", err)
			}
			return
		}
	}
}

// write sends what is due whenever it is told to look.
func (p *Peer) write(c *peerConn, done <-chan struct{}) {
	for {
		frames := p.due(c)
		if len(frames) > 0 {
			if writeFrame(c.conn, frames...) != nil {
				c.close()
				return
			}
			continue
		}
		select {
		case <-c.wake:
		case <-c.beat:
			if writeFrame(c.conn, putFrame(frameBeat)) != nil {
				c.close()
				return
			}
		case <-done:
			return
		}
	}
}

// due collects what is to be written: frames of calls, and of positions only
// the newest.
func (p *Peer) due(c *peerConn) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != c {
		return nil
	}
	frames := c.out
	c.out = nil
	if p.acked > c.acked {
		c.acked = p.acked
		frames = append(frames, putFrame(frameAck, putUint(uint64(c.acked)))) //nolint:gosec // positive
	}
	if !p.reading {
		return frames
	}
	if c.askedGen != p.gen {
		c.askedGen = p.gen
		frames = append(frames, putFrame(frameRead, putUint(p.gen), putUint(uint64(p.newest())))) //nolint:gosec // positive
	}
	// Small steps aren't worth a frame, unless the shim has none left.
	credit := c.received + lineWindow - p.buffered
	if credit-c.credit >= lineWindow/4 || (credit > c.credit && c.received >= c.credit) {
		c.credit = credit
		frames = append(frames, putFrame(frameCredit, putUint(uint64(credit)))) //nolint:gosec // positive
	}
	return frames
}

// handle takes one frame of the shim's.
func (p *Peer) handle(c *peerConn, t frameType, b []byte) error {
	switch t {
	case frameLines:
		gen, records, ok := cutUint(b)
		if !ok {
			return errProtocol
		}
		return p.take(c, gen, records)
	case frameResponse:
		var resp response
		if json.Unmarshal(b, &resp) != nil {
			return errProtocol
		}
		res := callResult{result: resp.Result}
		if resp.Error != nil {
			res.err = resp.Error
		}
		return p.deliver(c, resp.ID, res, true)
	case frameData, frameMore:
		id, data, ok := cutUint(b)
		if !ok {
			return errProtocol
		}
		return p.deliver(c, id, callResult{frame: t, data: data}, false)
	default:
		return errProtocol
	}
}

func writeFrame(conn net.Conn, frames ...[]byte) error {
	if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	bufs := net.Buffers(frames)
	_, err := bufs.WriteTo(conn)
	return err
}
