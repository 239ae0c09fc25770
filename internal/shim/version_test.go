package shim

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// TestShimOfBefore: a shim that speaks the oldest version is welcome, and is
// never sent what came later.
func TestShimOfBefore(t *testing.T) {
	cfg := peerConfig(t)
	startPeerAs(t, cfg, func(p *Peer) { p.beat = time.Millisecond })
	old := dialPeer(t, cfg.Path)
	h := goodHello()
	h.Versions = Versions{MinVersion, MinVersion}
	if got := old.greet(h); got != frameWelcome {
		t.Fatalf("answered by frame type %d", got)
	}
	must(t, old.conn.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	if got, _ := old.answer(); got != 0 {
		t.Errorf("a shim of version %d was sent frame type %d", MinVersion, got)
	}
	// A newer one is told that the server is there.
	now := dialPeer(t, cfg.Path)
	h.Versions.Max = heartbeats
	if got := now.greet(h); got != frameWelcome {
		t.Fatalf("answered by frame type %d", got)
	}
	now.expect(frameBeat)
	now.expect(frameBeat)
}

// TestServerOfBefore: a server that knows no heartbeats may be silent for as
// long as it likes.
func TestServerOfBefore(t *testing.T) {
	b := newBox(t, func(c *Config) { c.SilenceMS, c.OrphanTimeoutMS = 100, 100 })
	s := b.serveAs(func(p *Peer) { p.speak.Max = 1 })
	must(t, s.Start(ctx(t), b.bash("echo begun; sleep 1; echo done")))
	lines, status := s.finish(0)
	if text(lines, Stdout) != "begun\ndone\n" || status.Cause != "" {
		t.Errorf("it said %q and ended by %q", text(lines, Stdout), status.Cause)
	}
}

// TestSilentServer: a server that keeps its connection but says nothing is
// not there: the agent is an orphan after a while, and the next server hears
// of it. One that says that it is there is there.
func TestSilentServer(t *testing.T) {
	b := newBox(t, func(c *Config) { c.SilenceMS, c.OrphanTimeoutMS = 500, 500 })
	s := b.serveAs(func(p *Peer) { p.beat = 20 * time.Millisecond })
	must(t, s.Start(ctx(t), b.bash("echo begun; sleep 1.5; echo still; sleep 300")))
	for after := int64(0); ; {
		lines, err := s.Next(ctx(t), after, 100)
		must(t, err)
		if after = lines[len(lines)-1].Seq; strings.Contains(text(lines, Stdout), "still") {
			break
		}
	}
	s.die()
	frozen, err := unixsock.Listen(b.socket())
	must(t, err)
	conn, err := frozen.AcceptUnix()
	must(t, err)
	defer func() { _ = conn.Close() }()
	if got, _, err := readFrame(conn, maxHello); got != frameHello {
		t.Fatalf("frame type %d, %v", got, err)
	}
	must(t, writeFrame(conn, putJSON(frameWelcome, welcome{Version: heartbeats})))
	eventually(t, "the agent's end", func() bool { return len(b.processes()) == 1 })
	must(t, frozen.Close())
	s = b.serve(nil)
	if _, status := s.finish(0); status.Cause != CauseOrphaned {
		t.Errorf("it was ended by %q", status.Cause)
	}
}

// TestFrozenShim: a shim that was stopped for longer than its patience takes
// no harm: the server was there.
func TestFrozenShim(t *testing.T) {
	b := newBox(t, func(c *Config) { c.SilenceMS, c.OrphanTimeoutMS = 300, 2000 })
	s := b.serveAs(func(p *Peer) { p.beat = 20 * time.Millisecond })
	must(t, s.Start(ctx(t), b.bash("echo begun; read -r x; echo $x")))
	_, err := s.Next(ctx(t), 0, 1)
	must(t, err)
	must(t, b.cmd.Process.Signal(unix.SIGSTOP))
	<-time.After(2500 * time.Millisecond) // it is to be away
	must(t, b.cmd.Process.Signal(unix.SIGCONT))
	must(t, s.Stdin(ctx(t), 1, []byte("on\n")))
	lines, status := s.finish(0)
	if text(lines, Stdout) != "begun\non\n" || status.Cause != "" {
		t.Errorf("it said %q and ended by %q", text(lines, Stdout), status.Cause)
	}
}

// TestTimeLeft: a shim tells how much of its agent's time is left, by its own
// clock.
func TestTimeLeft(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	p := b.bash("echo begun; read -r x")
	p.Deadline = time.Hour
	must(t, s.Start(ctx(t), p))
	s.die()
	s = b.serve(nil)
	h, err := s.Ready(ctx(t))
	must(t, err)
	if left := h.Agent.Left; left > time.Hour || left < time.Hour-patience {
		t.Errorf("of an hour %s is left", left)
	}
}
