package shim

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

const (
	// welcomeTimeout is how long the shim waits for the server's answer, which
	// may have to find out first who should be calling.
	welcomeTimeout = 30 * time.Second
	sendBatch      = 256 << 10
)

func newBootID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return hex.EncodeToString(b[:])
}

// dial keeps a connection to the server for as long as the sandbox lives, and
// ends the agent when there has been none for too long.
func (in *initProcess) dial(ctx context.Context) {
	orphan := in.orphanTimer()
	delay := retryFirst
	for ctx.Err() == nil {
		if in.connect(ctx, orphan) {
			delay = retryFirst
		}
		if !wait(ctx, delay) {
			return
		}
		delay = min(2*delay, retryLast)
	}
}

// orphanTimer runs while no server is there.
func (in *initProcess) orphanTimer() *time.Timer {
	if in.cfg.OrphanTimeoutMS < 0 {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.AfterFunc(in.orphanTimeout(), func() { in.agent.endIfRunning(CauseOrphaned) })
}

func (in *initProcess) orphanTimeout() time.Duration {
	return time.Duration(in.cfg.OrphanTimeoutMS) * time.Millisecond
}

// connect makes one connection and serves it to its end; it reports whether
// the server accepted it.
func (in *initProcess) connect(ctx context.Context, orphan *time.Timer) bool {
	conn, err := unixsock.Dial(ctx, filepath.Join(in.hostDir, ServerSocket))
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // it is over
	l := &link{in: in, conn: conn, calls: map[uint64]*fileCall{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	ear := &ear{conn: conn}
	r := bufio.NewReaderSize(ear, 64<<10)
	version, err := l.greet(r)
	if err != nil {
		in.complain(err)
		return false
	}
	if version >= heartbeats {
		ear.patience = in.silence()
	}
	orphan.Stop()
	defer func() {
		if in.cfg.OrphanTimeoutMS >= 0 {
			orphan.Reset(in.orphanTimeout())
		}
	}()
	l.serve(r)
	return true
}

func (in *initProcess) silence() time.Duration {
	if in.cfg.SilenceMS > 0 {
		return time.Duration(in.cfg.SilenceMS) * time.Millisecond
	}
	return silence
}

// ear reads from a connection whose other end must not be silent for longer
// than patience: a frozen server keeps its connections, but it is not there.
type ear struct {
	conn     net.Conn
	patience time.Duration // 0: any silence; changed between reads only
}

func (e *ear) Read(b []byte) (int, error) {
	if e.patience > 0 {
		if err := e.conn.SetReadDeadline(time.Now().Add(e.patience)); err != nil {
			return 0, err
		}
	}
	return e.conn.Read(b)
}

// link is one connection to the server. Everything that it was doing for the
// server ends with it; the server asks again.
type link struct {
	in   *initProcess
	conn net.Conn
	work sync.WaitGroup

	write sync.Mutex // one frame at a time

	mu      sync.Mutex
	closed  bool
	calls   map[uint64]*fileCall
	reading bool   // the server has asked for lines
	gen     uint64 // the newest question
	after   int64  // its position
	moved   bool   // the sender has not seen it yet
	credit  uint64 // bytes of lines that may be sent in all
	wake    chan struct{}
	done    chan struct{} // closed with closed
}

// greet says hello and waits for the answer, which decides the version.
func (l *link) greet(r *bufio.Reader) (version int, err error) {
	first, last := l.in.spool.bounds()
	hello := Hello{
		Versions: Versions{MinVersion, MaxVersion}, Sandbox: l.in.cfg.Sandbox, Token: l.in.cfg.Token,
		BootID: l.in.bootID, FirstSeq: first, LastSeq: last, Agent: l.in.agent.state(),
	}
	if err := l.conn.SetDeadline(time.Now().Add(welcomeTimeout)); err != nil {
		return 0, fmt.Errorf("hello: %w", err)
	}
	if err := l.send(putJSON(frameHello, hello)); err != nil {
		return 0, fmt.Errorf("hello: %w", err)
	}
	t, payload, err := readFrame(r, maxHello)
	if err != nil {
		return 0, fmt.Errorf("hello: %w", err)
	}
	switch t {
	case frameWelcome:
		var w welcome
		if err := json.Unmarshal(payload, &w); err != nil {
			return 0, fmt.Errorf("welcome: %w", err)
		}
		if w.Version < MinVersion || w.Version > MaxVersion {
			return 0, fmt.Errorf("welcome: the server speaks protocol version %d, this shim %d to %d", w.Version, MinVersion, MaxVersion)
		}
		return w.Version, l.conn.SetDeadline(time.Time{})
	case frameRefuse:
		re := &RemoteError{}
		if err := json.Unmarshal(payload, re); err != nil {
			return 0, fmt.Errorf("refusal: %w", err)
		}
		return 0, fmt.Errorf("the server refuses this shim: %s", re.Message)
	default:
		return 0, fmt.Errorf("hello was answered by frame type %d", t)
	}
}

// serve handles the server's frames until the connection ends.
func (l *link) serve(r *bufio.Reader) {
	l.work.Go(l.sendLines)
	for {
		t, payload, err := readFrame(r, maxFrame)
		if err == nil {
			err = l.handle(t, payload)
		}
		if err != nil {
			break
		}
	}
	l.mu.Lock()
	l.closed = true
	close(l.done)
	for _, c := range l.calls {
		c.cancel()
	}
	l.mu.Unlock()
	_ = l.conn.Close()
	l.nudge()
	l.work.Wait()
}

// send writes one frame. It fails only when the connection has ended.
func (l *link) send(frame ...[]byte) error {
	l.write.Lock()
	defer l.write.Unlock()
	bufs := net.Buffers(frame)
	_, err := bufs.WriteTo(l.conn)
	return err
}

func (l *link) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

var errProtocol = errors.New("protocol violation")

func (l *link) handle(t frameType, b []byte) error {
	if t == frameBeat {
		return nil
	}
	if t == frameRequest {
		var req request
		if err := json.Unmarshal(b, &req); err != nil {
			return errProtocol
		}
		l.request(req)
		return nil
	}
	v, rest, ok := cutUint(b)
	if !ok {
		return errProtocol
	}
	switch t {
	case frameStdin:
		id, data, ok := cutUint(rest)
		if !ok {
			return errProtocol
		}
		l.stdin(v, id, data)
	case frameRead:
		after, _, ok := cutUint(rest)
		if !ok {
			return errProtocol
		}
		l.mu.Lock()
		l.reading, l.gen, l.after, l.moved = true, v, int64(after), true //nolint:gosec // seek clamps it
		l.mu.Unlock()
		l.nudge()
	case frameCredit:
		l.mu.Lock()
		l.credit = max(l.credit, v)
		l.mu.Unlock()
		l.nudge()
	case frameAck:
		if err := l.in.spool.ack(int64(v)); err != nil { //nolint:gosec // ack clamps it
			l.in.complain(err)
		}
	case frameData, frameMore, frameEnd, frameCancel:
		l.mu.Lock()
		c := l.calls[v]
		l.mu.Unlock()
		if c != nil { // else its end and this have crossed
			c.deliver(t, rest)
		}
	default:
		return errProtocol
	}
	return nil
}

// sendLines sends the lines that the server asked for as they come, as far as
// its credit goes. Old and new lines take the same way: from the spool.
func (l *link) sendLines() {
	appended, unsubscribe := l.in.spool.subscribe()
	defer unsubscribe()
	var (
		at   cursor
		gen  uint64
		sent uint64
		buf  []byte
		err  error
	)
	const prefix = frameHeader + 8
	for {
		l.mu.Lock()
		closed, ready := l.closed, l.reading && sent < l.credit
		moved, after := l.moved, l.after
		gen, l.moved = l.gen, false
		l.mu.Unlock()
		if closed {
			return
		}
		if moved {
			if at, err = l.in.spool.seek(after); err != nil {
				l.fail(err)
				return
			}
		}
		n := 0
		if ready {
			if cap(buf) < prefix {
				buf = make([]byte, prefix, 4096)
			}
			if buf, err = l.in.spool.read(buf[:prefix], &at, sendBatch); err != nil {
				l.fail(err)
				return
			}
			n = len(buf) - prefix
		}
		if n == 0 {
			select {
			case <-appended:
			case <-l.wake:
			}
			continue
		}
		putHeader(buf, frameLines, 8+n)
		binary.BigEndian.PutUint64(buf[frameHeader:], gen)
		if l.send(buf) != nil {
			_ = l.conn.Close() // the reader sees it and ends the link
			return
		}
		sent += uint64(n) //nolint:gosec // positive
		buf = shrink(buf)
	}
}

func (l *link) fail(err error) {
	l.in.complain(err)
	_ = l.conn.Close()
}
