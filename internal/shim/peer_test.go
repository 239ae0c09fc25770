package shim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// caller plays a shim, or somebody who would like to be one.
type caller struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func goodHello() Hello {
	return Hello{Versions: Versions{1, 1}, Sandbox: "sb", Token: testToken, BootID: "boot", FirstSeq: 1}
}

func peerConfig(t *testing.T) PeerConfig {
	t.Helper()
	return PeerConfig{Path: filepath.Join(t.TempDir(), "s"), SandboxID: "sb", Token: testToken}
}

func dialPeer(t *testing.T, path string) *caller {
	t.Helper()
	conn, err := unixsock.Dial(ctx(t), path)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(patience)))
	return &caller{t, conn, bufio.NewReader(conn)}
}

func (c *caller) send(frame []byte) {
	c.t.Helper()
	_, err := c.conn.Write(frame)
	must(c.t, err)
}

// answer is the next frame; 0 at the connection's end.
func (c *caller) answer() (frameType, []byte) {
	t, payload, err := readFrame(c.r, maxFrame)
	if err != nil {
		return 0, nil
	}
	return t, payload
}

// expect skips frames until one of type t.
func (c *caller) expect(t frameType) []byte {
	c.t.Helper()
	for {
		got, payload := c.answer()
		if got == t {
			return payload
		}
		if got == 0 {
			c.t.Fatalf("the connection ended before a frame of type %d", t)
		}
	}
}

func (c *caller) greet(h Hello) frameType {
	c.t.Helper()
	c.send(putJSON(frameHello, h))
	t, _ := c.answer()
	return t
}

func TestRefusedCallers(t *testing.T) {
	var uid atomic.Uint32
	cfg := peerConfig(t)
	cfg.PeerUID = func(context.Context) (PeerRule, error) {
		if uid.Load() == 1<<31 {
			return PeerRule{}, errors.New("not known")
		}
		return PeerRule{UID: uid.Load()}, nil
	}
	s := startPeer(t, cfg)
	hello := func(change func(*Hello)) []byte {
		h := goodHello()
		change(&h)
		return putJSON(frameHello, h)
	}
	for name, c := range map[string]struct {
		uid  uint32
		raw  []byte
		want frameType
	}{
		"wrong uid":       {12345, hello(func(*Hello) {}), 0},
		"uid unknown":     {1 << 31, hello(func(*Hello) {}), 0},
		"wrong token":     {0, hello(func(h *Hello) { h.Token = "guess" }), frameRefuse},
		"no token":        {0, hello(func(h *Hello) { h.Token = "" }), frameRefuse},
		"wrong sandbox":   {0, hello(func(h *Hello) { h.Sandbox = "other" }), frameRefuse},
		"no boot id":      {0, hello(func(h *Hello) { h.BootID = "" }), frameRefuse},
		"no hello":        {0, putJSON(frameRequest, request{}), 0},
		"not JSON":        {0, putFrame(frameHello, []byte("hello")), 0},
		"not a frame":     {0, []byte("GET / HTTP/1.1\r\n\r\n"), 0},
		"too long":        {0, putFrame(frameHello, bytes.Repeat([]byte(" "), maxHello)), 0},
		"unknown version": {0, nil, 0}, // see below
	} {
		if c.raw == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			uid.Store(c.uid)
			caller := dialPeer(t, cfg.Path)
			_, _ = caller.conn.Write(c.raw) // may be refused before it is read
			if got, _ := caller.answer(); got != c.want {
				t.Errorf("answered by frame type %d, want %d", got, c.want)
			}
			if got, _ := caller.answer(); got != 0 {
				t.Errorf("the connection goes on")
			}
		})
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Ready(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ready: %v, want nobody to have come", err)
	}
	// After all that the real one is welcome.
	uid.Store(0)
	if got := dialPeer(t, cfg.Path).greet(goodHello()); got != frameWelcome {
		t.Errorf("the shim got frame type %d", got)
	}
	h, err := s.Ready(ctx(t))
	if err != nil || h.BootID != "boot" || h.Token != "" {
		t.Errorf("ready: %+v, %v", h, err)
	}
}

func TestUnknownVersionIsRefusedByName(t *testing.T) {
	cfg := peerConfig(t)
	s := startPeer(t, cfg)
	h := goodHello()
	h.Versions = Versions{MaxVersion + 1, MaxVersion + 3}
	if got := dialPeer(t, cfg.Path).greet(h); got != frameRefuse {
		t.Fatalf("answered by frame type %d", got)
	}
	_, err := s.Ready(ctx(t))
	wantCode(t, err, CodeVersion)
	if !strings.Contains(err.Error(), fmt.Sprintf("protocol versions %d to %d", MaxVersion+1, MaxVersion+3)) {
		t.Errorf("error %v doesn't name the versions", err)
	}
	if err := <-s.done; err == nil {
		t.Error("run ended without the reason")
	}
	s.done = nil
}

func TestFirstHelloWinsAndNewestConnectionReplaces(t *testing.T) {
	cfg := peerConfig(t)
	s := startPeer(t, cfg)
	first := dialPeer(t, cfg.Path)
	if got := first.greet(goodHello()); got != frameWelcome {
		t.Fatalf("answered by frame type %d", got)
	}
	other := goodHello()
	other.BootID = "other"
	if got := dialPeer(t, cfg.Path).greet(other); got != frameRefuse {
		t.Errorf("another boot was answered by frame type %d", got)
	}
	// The first goes on working…
	errs := make(chan error, 1)
	go func() { errs <- s.Start(ctx(t), Process{ID: "p"}) }()
	first.expect(frameRequest)
	// …until the same shim comes again, which gets the open request again.
	second := dialPeer(t, cfg.Path)
	if got := second.greet(goodHello()); got != frameWelcome {
		t.Fatalf("answered by frame type %d", got)
	}
	if got, _ := first.answer(); got != 0 {
		t.Errorf("the old connection goes on with frame type %d", got)
	}
	var req request
	must(t, json.Unmarshal(second.expect(frameRequest), &req))
	second.send(putJSON(frameResponse, response{ID: req.ID, Error: remotef(CodeStart, "no")}))
	wantCode(t, <-errs, CodeStart)
}

func TestHostileShim(t *testing.T) {
	for name, attack := range map[string]func(*caller){
		"lines unasked":      func(c *caller) { c.send(putFrame(frameLines, putUint(0), numbered(1, "x"))) },
		"unknown frame":      func(c *caller) { c.send(putFrame(99)) },
		"malformed response": func(c *caller) { c.send(putFrame(frameResponse, []byte("{"))) },
		"short data":         func(c *caller) { c.send(putFrame(frameData, []byte("x"))) },
		"frame above limit":  func(c *caller) { c.send([]byte{0xff, 0, 0, 0, 1}) },
		"answer to nobody":   func(c *caller) { c.send(putJSON(frameResponse, response{ID: 77})); _ = c.conn.Close() },
		"hello again":        func(c *caller) { c.send(putJSON(frameHello, goodHello())) },
		"malformed record":   func(c *caller) { c.expect(frameCredit); c.send(putFrame(frameLines, putUint(1), []byte("xx"))) },
		"lines above credit": func(c *caller) { c.expect(frameCredit); c.flood() },
		"falling sequence": func(c *caller) {
			c.expect(frameCredit)
			c.send(putFrame(frameLines, putUint(1), append(numbered(5, "a"), numbered(4, "b")...)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := peerConfig(t)
			s := startPeer(t, cfg)
			c := dialPeer(t, cfg.Path)
			if got := c.greet(goodHello()); got != frameWelcome {
				t.Fatalf("answered by frame type %d", got)
			}
			if !strings.Contains(name, "unasked") {
				short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				_, _ = s.Next(short, 0, 1)
			}
			attack(c)
			for {
				if got, _ := c.answer(); got == 0 {
					break
				}
			}
			// The Peer is as good as before.
			if got := dialPeer(t, cfg.Path).greet(goodHello()); got != frameWelcome {
				t.Errorf("the shim is not welcome any more: %d", got)
			}
		})
	}
}

// flood sends lines until it is cut off.
func (c *caller) flood() {
	line := strings.Repeat("x", 200_000)
	for seq := int64(1); seq < 1000; seq++ {
		if _, err := c.conn.Write(putFrame(frameLines, putUint(1), numbered(seq, line))); err != nil {
			return
		}
	}
	c.t.Error("200 MB were taken that nobody had asked for")
}

func TestGone(t *testing.T) {
	cfg := peerConfig(t)
	var asked atomic.Int32
	cfg.Alive = func(context.Context) (bool, error) {
		switch asked.Add(1) {
		case 1:
			return false, errors.New("the engine is down")
		case 2:
			return true, nil
		}
		return false, nil
	}
	s := startPeer(t, cfg)
	if _, err := s.Next(ctx(t), 0, 1); !errors.Is(err, ErrGone) {
		t.Errorf("next: %v, want ErrGone", err)
	}
	if err := s.Start(ctx(t), Process{}); !errors.Is(err, ErrGone) {
		t.Errorf("start: %v, want ErrGone", err)
	}
	if _, err := s.Ready(ctx(t)); !errors.Is(err, ErrGone) {
		t.Errorf("ready: %v, want ErrGone", err)
	}
	if err := s.ReadFile(ctx(t), "/x", 1, 1, io.Discard, 1); !errors.Is(err, ErrGone) {
		t.Errorf("read: %v, want ErrGone", err)
	}
	must(t, s.Exit(ctx(t)))
	if err := <-s.done; !errors.Is(err, ErrGone) {
		t.Errorf("run: %v, want ErrGone", err)
	}
	s.done = nil
	if asked.Load() != 3 {
		t.Errorf("alive was asked %d times", asked.Load())
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cfg := peerConfig(t)
	cfg.Alive = func(c context.Context) (bool, error) { <-c.Done(); return false, c.Err() }
	p, err := Listen(cfg)
	must(t, err)
	c, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(c) }()
	caller := dialPeer(t, cfg.Path)
	if got := caller.greet(goodHello()); got != frameWelcome {
		t.Fatalf("answered by frame type %d", got)
	}
	waiting := make(chan error)
	go func() { _, err := p.Next(context.Background(), 0, 1); waiting <- err }()
	go func() { waiting <- p.Start(context.Background(), Process{}) }()
	stranger := dialPeer(t, cfg.Path) // in the middle of its hello
	caller.expect(frameRequest)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v", err)
	}
	for range 2 {
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("a waiting call: %v, want ErrClosed", err)
		}
	}
	must(t, p.Close())
	_ = stranger.conn.Close()
	_ = caller.conn.Close()
}

// A new server gets what the old one has not acknowledged, to the last line.
func TestUnacknowledgedExitComesAgain(t *testing.T) {
	b := newBox(t, nil)
	first := b.serve(nil)
	must(t, first.Start(ctx(t), b.bash("seq 1000")))
	first.die() // while it lives the shim stays with it
	for range 3 {
		s := b.serve(nil)
		var all []Line
		for len(all) == 0 || all[len(all)-1].Stream != Exit {
			lines, err := s.Next(ctx(t), int64(len(all)), 300)
			must(t, err)
			all = append(all, lines...)
		}
		checkGapless(t, all)
		s.die()
	}
	s := b.serve(nil)
	s.Ack(1000)
	for range 2 {
		lines, err := s.Next(ctx(t), 1000, 10)
		if err != nil || len(lines) != 1 || lines[0].Stream != Exit || lines[0].Seq != 1001 {
			t.Fatalf("after the last line of output: %v, %v; want the exit", lines, err)
		}
		s.die()
		s = b.serve(nil)
	}
}

func TestNextWithoutAckGivesTheSameAgain(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash("seq 5000")))
	for _, after := range []int64{0, 100, 99, 4000, 0, 5000, 1, 1} {
		for at := after; at < min(after+500, 5001); {
			lines, err := s.Next(ctx(t), at, 7)
			must(t, err)
			if len(lines) > 7 {
				t.Fatalf("%d lines, asked for 7", len(lines))
			}
			for _, l := range lines {
				if at++; l.Seq != at {
					t.Fatalf("line %d, want %d", l.Seq, at)
				}
			}
		}
	}
	if _, err := s.Next(ctx(t), -1, 1); err == nil {
		t.Error("a negative position is accepted")
	}
	if _, err := s.Next(ctx(t), 0, 0); err == nil {
		t.Error("zero lines are accepted")
	}
}
