package unixsock_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

func TestListenOwn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	first, err := unixsock.ListenOwn(t.Context(), path, 0o660)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("%v, %v", info, err)
	}
	if first.Addr().String() != path {
		t.Errorf("it is at %s", first.Addr())
	}
	if _, err := unixsock.ListenOwn(t.Context(), path, 0o600); !errors.Is(err, unixsock.ErrInUse) {
		t.Errorf("a living one was replaced: %v", err)
	}
	if c, err := unixsock.Dial(t.Context(), path); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}

	// What a dead process left is replaced, by one of those that want it.
	stale, err := unixsock.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	got := make(chan net.Listener, 8)
	for range cap(got) {
		all.Go(func() {
			l, err := unixsock.ListenOwn(t.Context(), path, 0o600)
			if err == nil {
				got <- l
			} else if !errors.Is(err, unixsock.ErrInUse) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(got) != 1 {
		t.Errorf("%d listen", len(got))
	}
	close(got)
	for l := range got {
		_ = l.Close()
	}

	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := unixsock.ListenOwn(t.Context(), path, 0o600); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("a file was replaced: %q, %v", b, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}
