package shim

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

type forwardBox struct {
	*forwarder
	t *testing.T
}

func startForwarder(t *testing.T, change func(*Config)) forwardBox {
	t.Helper()
	cfg := Config{Token: testToken, ForwardAddr: "127.0.0.1:0", MaxForwards: 4, HoldMS: 20_000}
	if change != nil {
		change(&cfg)
	}
	f := newForwarder(cfg, filepath.Join(t.TempDir(), EgressSocket))
	c, cancel := context.WithCancel(context.Background())
	must(t, f.listen(c))
	done := make(chan struct{})
	go func() { defer close(done); f.serve(c) }()
	t.Cleanup(func() { cancel(); <-done })
	return forwardBox{f, t}
}

func (f forwardBox) dial() *net.TCPConn {
	f.t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(ctx(f.t), "tcp", f.l.Addr().String())
	must(f.t, err)
	f.t.Cleanup(func() { _ = conn.Close() })
	must(f.t, conn.SetDeadline(time.Now().Add(patience)))
	return conn.(*net.TCPConn)
}

// egress listens and hands each connection, its preamble read, to serve.
func (f forwardBox) egress(serve func(*net.UnixConn, *bufio.Reader)) *net.UnixListener {
	f.t.Helper()
	l, err := unixsock.Listen(f.socket)
	must(f.t, err)
	f.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReader(conn)
				if line, err := r.ReadString('\n'); err == nil && line == Preamble+testToken+"\n" {
					serve(conn, r)
				}
			}()
		}
	}()
	return l
}

// echo answers what it got once the caller has closed its side.
func echo(conn *net.UnixConn, r *bufio.Reader) {
	b, _ := io.ReadAll(r)
	_, _ = conn.Write(append([]byte("got "), b...))
}

func TestForwardHalfClose(t *testing.T) {
	f := startForwarder(t, nil)
	f.egress(echo)
	big := strings.Repeat("x", 3<<20)
	for range 10 { // more than may be open at once
		conn := f.dial()
		_, err := io.WriteString(conn, big)
		must(t, err)
		must(t, conn.CloseWrite())
		got, err := io.ReadAll(conn)
		if err != nil || string(got) != "got "+big {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		must(t, conn.Close())
	}
	// The other way round: egress closes first and still listens.
	heard := make(chan string, 1)
	f.egress(func(conn *net.UnixConn, r *bufio.Reader) {
		_ = conn.CloseWrite()
		b, _ := io.ReadAll(r)
		heard <- string(b)
	})
	conn := f.dial()
	if got, err := io.ReadAll(conn); err != nil || len(got) != 0 {
		t.Errorf("read %q, %v", got, err)
	}
	_, err := io.WriteString(conn, "late")
	must(t, err)
	must(t, conn.CloseWrite())
	if got := <-heard; got != "late" {
		t.Errorf("egress heard %q", got)
	}
}

func TestForwardHoldsWhileEgressIsAway(t *testing.T) {
	f := startForwarder(t, nil)
	var conns []*net.TCPConn
	for range 6 { // two of them wait in the kernel's queue
		conn := f.dial()
		_, err := io.WriteString(conn, "hello")
		must(t, err)
		must(t, conn.CloseWrite())
		conns = append(conns, conn)
	}
	eventually(t, "four are held", func() bool { return len(f.slots) == cap(f.slots) })
	f.egress(echo)
	for _, conn := range conns {
		if got, err := io.ReadAll(conn); err != nil || string(got) != "got hello" {
			t.Errorf("read %q, %v", got, err)
		}
	}
}

func TestForwardGivesUp(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.HoldMS, c.MaxForwards = 300, 1 })
	begin := time.Now()
	conn := f.dial()
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	if d := time.Since(begin); d < 200*time.Millisecond {
		t.Errorf("given up after %v", d)
	}
}

func TestForwardLetsGoOfResetClients(t *testing.T) {
	f := startForwarder(t, func(c *Config) { c.MaxForwards = 1 })
	conn := f.dial()
	eventually(t, "it is held", func() bool { return len(f.slots) == 1 })
	must(t, conn.SetLinger(0))
	must(t, conn.Close())
	next := f.dial()
	f.egress(echo)
	must(t, next.CloseWrite())
	if got, err := io.ReadAll(next); err != nil || string(got) != "got " {
		t.Errorf("read %q, %v", got, err)
	}
}

// An egress that dies resets what it had; the next connection finds the next.
func TestForwardSurvivesEgress(t *testing.T) {
	f := startForwarder(t, nil)
	first := f.egress(func(*net.UnixConn, *bufio.Reader) {})
	if got, _ := io.ReadAll(f.dial()); len(got) != 0 {
		t.Errorf("read %q", got)
	}
	must(t, first.Close())
	must(t, os.Remove(f.socket))
	conn := f.dial()
	must(t, conn.CloseWrite())
	f.egress(echo)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "got " {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestForwardFromTheAgent(t *testing.T) {
	b := newBox(t, nil)
	f := forwardBox{newForwarder(Config{}, filepath.Join(b.host, EgressSocket)), t}
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash(`exec 3<>/dev/tcp/127.0.0.1/3128; echo hello >&3; cat <&3`)))
	f.egress(func(conn *net.UnixConn, r *bufio.Reader) {
		line, _ := r.ReadString('\n')
		_, _ = io.WriteString(conn, "answer to "+line)
	})
	lines, _ := s.finish(0)
	if got := text(lines, Stdout); got != "answer to hello\n" {
		t.Errorf("the agent got %q", got)
	}
}
