package unixsock_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

func TestListenAndDial(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 90), strings.Repeat("e", 90))
	if err := os.MkdirAll(long, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"short path": filepath.Join(t.TempDir(), "s"),
		"long path":  filepath.Join(long, "server.sock"),
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t, path)
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode().Perm() != unixsock.Mode {
				t.Errorf("mode %v, want %o", fi.Mode().Perm(), unixsock.Mode)
			}
			go answer(l, "hello")
			conn, err := unixsock.Dial(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			cred, err := unixsock.PeerCred(conn)
			if err != nil {
				t.Fatal(err)
			}
			if int(cred.UID) != os.Getuid() || int(cred.PID) != os.Getpid() {
				t.Errorf("peer is %+v, want this process", cred)
			}
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil || len(entries) != 1 {
				t.Errorf("directory holds %v, want the socket only", entries)
			}
		})
	}
}

// A successor takes the path over, and the predecessor's end leaves it alone.
func TestTakeover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := listen(t, path)
	second := listen(t, path)
	go answer(second, "second")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := unixsock.Dial(t.Context(), path)
	if err != nil {
		t.Fatalf("the predecessor's close took the path away: %v", err)
	}
	defer func() { _ = conn.Close() }()
	if got, _ := io.ReadAll(conn); string(got) != "second" {
		t.Errorf("got %q, want the successor's answer", got)
	}
}

func TestDialNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := unixsock.Dial(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing socket: %v, want ENOENT", err)
	}
	path := filepath.Join(dir, "stale")
	if err := listen(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unixsock.Dial(t.Context(), path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("stale socket: %v, want ECONNREFUSED", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unixsock.Dial(ctx, path); err == nil {
		t.Error("dial with an ended context succeeded")
	}
	if _, err := unixsock.Listen(filepath.Join(dir, "no", "such")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("listen below a missing directory: %v, want ENOENT", err)
	}
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// answer serves one connection.
func answer(l net.Listener, text string) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}
