package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrInUse is in the chain of ListenOwn's error when somebody answers at the
// path.
var ErrInUse = errors.New("another process listens there")

// ListenOwn listens on path with a mode, which holds from the first moment on. A
// socket that was left behind is replaced; one at which somebody answers is
// ErrInUse, also when two try it at once. Closing the listener removes the path.
// Dialling ends with ctx.
func ListenOwn(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	l, err := listenOwn(ctx, path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listenOwn(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	// The directory's lock is held from the look at the path until it is taken.
	lock, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock the directory: %w", err)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, errors.New("what is there is not a socket")
	default:
		c, err := Dial(ctx, path)
		if err == nil {
			_ = c.Close()
			return nil, ErrInUse
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("%w: %w", ErrInUse, err)
		}
	}
	dir := int(lock.Fd())
	tmp := tempName()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: below(dir, tmp), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	// Until it has its mode it has a name that nobody knows.
	if err := unix.Fchmodat(dir, tmp, uint32(mode.Perm()), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("chmod: %w", err), abandon(l, dir, tmp))
	}
	if err := unix.Renameat(dir, tmp, dir, filepath.Base(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("rename: %w", err), abandon(l, dir, tmp))
	}
	return &own{UnixListener: l, path: path}, nil
}

// own is a listener whose path is its alone as long as it listens.
type own struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close removes the path first: while it can be dialled nobody replaces it.
func (o *own) Close() (err error) {
	o.once.Do(func() { err = errors.Join(os.Remove(o.path), o.UnixListener.Close()) })
	return err
}

// Addr is the path.
func (o *own) Addr() net.Addr { return &net.UnixAddr{Name: o.path, Net: "unix"} }
