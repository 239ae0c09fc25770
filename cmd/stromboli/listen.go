package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// firstInherited is the descriptor from which on a service manager hands
// sockets over.
const firstInherited = 3

// inherited takes the socket that a service manager such as systemd hands over
// (LISTEN_PID, LISTEN_FDS); nil: none. environ comes back without these
// variables, which are for this process alone.
func inherited(environ []string) (net.Listener, []string, error) {
	vars := map[string]string{}
	rest := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, value, _ := strings.Cut(kv, "=")
		ours := name == "LISTEN_PID" || name == "LISTEN_FDS" || name == "LISTEN_FDNAMES"
		if ours {
			vars[name] = value
		}
		return ours
	})
	if vars["LISTEN_PID"] != strconv.Itoa(os.Getpid()) { // none, or for another
		return nil, rest, nil
	}
	n, err := strconv.Atoi(vars["LISTEN_FDS"])
	if err != nil || n < 0 {
		return nil, rest, fmt.Errorf("LISTEN_FDS: %q is not a number of descriptors", vars["LISTEN_FDS"])
	}
	if n == 0 {
		return nil, rest, nil
	}
	if n > 1 {
		return nil, rest, fmt.Errorf("LISTEN_FDS: %d sockets were handed over, and one can be used: give the .socket unit one ListenStream", n)
	}
	syscall.CloseOnExec(firstInherited)
	f := os.NewFile(firstInherited, "inherited")
	defer func() { _ = f.Close() }() // the listener has a copy
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, rest, fmt.Errorf("the socket that was handed over (LISTEN_FDS): %w", err)
	}
	switch ln.Addr().(type) {
	case *net.TCPAddr, *net.UnixAddr:
		return ln, rest, nil
	}
	return nil, rest, errors.Join(fmt.Errorf("the socket that was handed over is at %s, which is neither TCP nor a unix socket", ln.Addr()), ln.Close())
}

// addressOf is how configuration would name a listener's address.
func addressOf(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "unix://" + addr.String()
	}
	return addr.String()
}

// listen opens the configured address.
func (s *server) listen(ctx context.Context) (net.Listener, error) {
	if s.inherited != nil {
		return s.inherited, nil
	}
	if path, ok := s.cfg.Socket(); ok {
		mode, err := s.cfg.SocketMode()
		if err != nil {
			return nil, fmt.Errorf("STROMBOLI_SERVER_SOCKET_MODE: %w", err)
		}
		ln, err := unixsock.ListenOwn(ctx, path, mode)
		if err != nil {
			return nil, fmt.Errorf("STROMBOLI_SERVER_ADDRESS: %w", err)
		}
		return ln, nil
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.cfg.Server.Address)
	if err != nil {
		return nil, fmt.Errorf("listening (STROMBOLI_SERVER_ADDRESS): %w", err)
	}
	return ln, nil
}

// urlOf is where this host reaches a listener.
func (s *server) urlOf(addr net.Addr) string {
	if addr.Network() == "unix" {
		return addressOf(addr)
	}
	scheme := "http://"
	if s.certificate != nil {
		scheme = "https://"
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return scheme + "127.0.0.1:" + strconv.Itoa(tcp.Port)
	}
	return scheme + addr.String()
}
