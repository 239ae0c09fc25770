// Package unixsock binds, dials and identifies unix sockets by path.
//
// It owns the three things that the standard library leaves open: taking a
// path over without a gap, paths longer than the kernel's 107 bytes, and who
// is at the other end. It speaks no protocol and keeps no state.
//
// A socket is bound under a temporary name and renamed over its path, so a
// dialler finds the old or the new listener at every moment, never nothing.
// A listener never removes its path when it is closed: by then the path may
// belong to a successor. A left-over path answers ECONNREFUSED and is replaced
// by the next Listen.
package unixsock

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxPath is the longest path that fits into a socket address.
const maxPath = 107

// Mode is the permission of every socket that Listen makes. Who may come that
// far is decided by the directories above it, and by PeerCred.
const Mode = 0o666

// Listen listens on path, taking it over from any listener that has it, which
// keeps the connections it already has. The directory must exist.
func Listen(path string) (*net.UnixListener, error) {
	dir, err := openDir(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() { _ = unix.Close(dir) }()

	base := filepath.Base(path)
	tmp := tempName()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: below(dir, tmp), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := unix.Fchmodat(dir, tmp, Mode, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: chmod: %w", path, err), abandon(l, dir, tmp))
	}
	if err := unix.Renameat(dir, tmp, dir, base); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: rename: %w", path, err), abandon(l, dir, tmp))
	}
	return l, nil
}

// abandon closes a listener that never got its path.
func abandon(l *net.UnixListener, dir int, tmp string) error {
	return errors.Join(l.Close(), unix.Unlinkat(dir, tmp, 0))
}

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	name := path
	if len(path) > maxPath {
		dir, err := openDir(path)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", path, err)
		}
		defer func() { _ = unix.Close(dir) }()
		name = below(dir, filepath.Base(path))
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", path, err)
	}
	return c.(*net.UnixConn), nil
}

// Cred is who was at the other end of a connection when it was made. The ids
// are as seen from this process's user namespace.
type Cred struct {
	UID, GID uint32
	PID      int32
}

// PeerCred asks the kernel (SO_PEERCRED) who made the connection.
func PeerCred(conn *net.UnixConn) (Cred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	var ucred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		ucred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, sockErr); err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Cred{UID: ucred.Uid, GID: ucred.Gid, PID: ucred.Pid}, nil
}

// openDir opens the directory that holds path, only to name things below it.
func openDir(path string) (int, error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory: %w", err)
	}
	return fd, nil
}

// below names a file in an open directory by a path that is always short.
func below(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

func tempName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails
	return ".sock-" + hex.EncodeToString(b[:])
}
