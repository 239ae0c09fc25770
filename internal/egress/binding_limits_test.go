package egress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestBindingBounds: a connection above those that a sandbox may have opened
// waits until one has ended; what isn't opened doesn't wait.
func TestBindingBounds(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(http.ResponseWriter, *http.Request) {}, func(g *gateway) { g.maxOpen = 2 })
	first, second := f.talk(f.to), f.talk(f.to)
	defer func() { _ = second.Close() }()
	waits := make(chan string, 1)
	go func() {
		_, status := f.tunnel(f.to)
		waits <- status
	}()
	through, status := f.tunnel(f.other)
	if !strings.Contains(status, " 200 ") {
		t.Error(status)
	}
	_ = through.Close()
	select {
	case got := <-waits:
		t.Fatalf("one too many was opened: %s", got)
	case <-time.After(50 * time.Millisecond):
	}
	_ = first.Close()
	if got := <-waits; !strings.Contains(got, " 200 ") {
		t.Error(got)
	}
}

// TestBindingIdle: a connection on which nothing moves ends.
func TestBindingIdle(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, func(g *gateway) { g.idle = 100 * time.Millisecond })
	c := f.talk(f.to)
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", f.to); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d, %v", n, err)
	}
	f.records(1)
}

// TestBindingLeaves: a process that a successor replaces begins no more requests
// on connections that are silent.
func TestBindingLeaves(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(http.ResponseWriter, *http.Request) {})
	c := f.talk(f.to)
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", f.to); err != nil {
		t.Fatal(err)
	}
	answer := bufio.NewReader(c)
	if resp, err := http.ReadResponse(answer, nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(err)
	}
	f.g.drain(t.Context())
	if _, err := answer.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestBindingSlow: who doesn't come to the point is not waited for.
func TestBindingSlow(t *testing.T) {
	t.Parallel()
	f := newBoundFixture(t, func(http.ResponseWriter, *http.Request) {}, func(g *gateway) { g.headers = 500 * time.Millisecond })
	silent, status := f.tunnel(f.to)
	if !strings.Contains(status, " 200 ") {
		t.Fatal(status)
	}
	if n, err := silent.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no TLS: %d, %v", n, err)
	}
	half, status := f.tunnel(f.to)
	if !strings.Contains(status, " 200 ") {
		t.Fatal(status)
	}
	_, _ = half.Write([]byte("\x16\x03\x01\x02\x00\x01"))
	if _, err := io.ReadAll(half); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half a greeting: %v", err)
	}
	f.records(2)
}

func TestBindingRegistration(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{})
	inside := newAuthority(t)
	good := Binding{To: "git.example:443", Header: "Authorization", Value: "hidden-value"}
	for name, change := range map[string]func(*Sandbox){
		"no identity":      func(s *Sandbox) { s.Identity = Identity{} },
		"another identity": func(s *Sandbox) { s.Identity = inside.identity("other.example") },
		"an address":       func(s *Sandbox) { s.Bindings[0].To = "192.0.2.1:443" },
		"no port":          func(s *Sandbox) { s.Bindings[0].To = "git.example" },
		"no value":         func(s *Sandbox) { s.Bindings[0].Value = "" },
		"two lines":        func(s *Sandbox) { s.Bindings[0].Value = "hidden-value\r\nX: y" },
		"no header":        func(s *Sandbox) { s.Bindings[0].Header = "a b" },
		"twice":            func(s *Sandbox) { s.Bindings = append(s.Bindings, s.Bindings[0]) },
	} {
		reg := f.registration("b")
		reg.Socket += "b"
		reg.Bindings, reg.Identity = []Binding{good}, inside.identity("git.example")
		if name == "twice" { // the control
			if err := reg.validate(); err != nil {
				t.Fatal(err)
			}
		}
		change(&reg)
		err := f.g.add(reg)
		if err == nil || strings.Contains(err.Error(), "hidden-value") {
			t.Errorf("%s: %v", name, err)
		}
		for _, shown := range []string{fmt.Sprint(reg), fmt.Sprintf("%+v %#v", reg.Bindings, reg.Bindings), fmt.Sprintf("%v %#v", reg.Identity, reg.Identity)} {
			if strings.Contains(shown, "hidden-value") || strings.Contains(shown, "PRIVATE KEY") {
				t.Errorf("printed: %s", shown)
			}
		}
	}
}
