// Package egress is the only way out of a sandbox: a small process of its own
// that gives each sandbox one unix socket, and the server's client of it.
//
// On a sandbox's socket it serves HTTP. A request in origin form is for the
// model: it goes to the configured endpoint with the real credential put on in
// place of what the sandbox sent. CONNECT and absolute-form requests are
// proxied to public hosts; what an address policy refuses is refused at connect
// time, on the addresses that are really dialled. A CONNECT to a host that the
// sandbox's bindings name is opened: its TLS ends here on both sides, and each
// request is shown the bound secret. All others pass as they are.
//
// It promises: a connection proves who it is, by the kernel's word on its peer
// and by a token, before a byte of it is used; the credential goes nowhere but
// to the model's endpoint, over verified TLS where that is HTTPS, and a bound
// secret nowhere but to its host, over verified TLS; an answer is
// passed on at once and never cut for being slow; a request in flight is not
// touched by a change of configuration, by the server's death or by its return.
//
// Each connection leaves a record (audit): numbered per sandbox, in a file until
// the server has read it, so that none is lost whoever dies.
//
// It refuses: to keep a credential on disk, to reach an address that is not public
// unless configuration names it, to serve a sandbox that isn't registered.
//
// It is a process of its own because a model's answer in flight must not die
// with the server: Serve is that process, Supervisor the server's side, which
// starts it, adopts it after a crash, notices its death and tells a new one
// everything that the old one knew.
package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// protocol is the version of the control API.
const protocol = 2

const (
	controlSocket = "control.sock"
	processLock   = "lock"
	startLock     = "start.lock"
	logFile       = "log"
)

const (
	defaultIdleTimeout  = time.Minute
	defaultAbandonAfter = time.Hour
	drainLimit          = 30 * time.Minute
	stopLimit           = 10 * time.Second
	lockPatience        = 10 * time.Second
)

// ServeConfig is what the egress process needs; Dir alone is required.
type ServeConfig struct {
	// Dir holds the control socket and the locks. It must exist, mode 0700.
	Dir string
	// Build names the program's version; a server of another build replaces
	// this process without cutting what is in flight.
	Build string
	// Demo answers model requests while the configuration says Demo.
	Demo http.Handler
	// IdleTimeout ends the process when there has been neither a sandbox nor a
	// server for so long (default 1 min); AbandonAfter when sandboxes are
	// registered, but neither a server nor a connection of theirs has been
	// there (default 1 h; longer than a sandbox outlives its server).
	IdleTimeout, AbandonAfter time.Duration
	// RootCAs verifies the model's endpoint; nil means the system's.
	RootCAs *x509.CertPool
	Log     *slog.Logger
}

// ErrRunning says that another process serves this directory.
var ErrRunning = errors.New("egress: another process serves this directory")

// Serve is the egress process. It blocks until ctx ends (requests in flight
// then get 10 s), a server asks it to shut down (they get 30 min, while the
// sockets are free for a successor), or nobody has needed it for a while.
func Serve(ctx context.Context, cfg ServeConfig) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = defaultIdleTimeout
	}
	if cfg.AbandonAfter <= 0 {
		cfg.AbandonAfter = defaultAbandonAfter
	}
	lock, err := lockFile(ctx, filepath.Join(cfg.Dir, processLock), lockPatience)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // closing unlocks

	g := newGateway(cfg)
	path := filepath.Join(cfg.Dir, controlSocket)
	l, err := unixsock.Listen(path)
	if err != nil {
		return fmt.Errorf("egress: control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("egress: control socket: %w", err)
	}
	ctl := newControl(g, cfg)
	cfg.Log.Info("egress: serving", "dir", cfg.Dir, "build", cfg.Build)

	// The group's context would end with the first of its goroutines; the
	// order of stopping is decided here instead.
	var eg errgroup.Group
	eg.Go(func() error { return ctl.serve(l) })
	eg.Go(func() error { ctl.watchNeed(); return nil })
	limit := stopLimit
	select {
	case <-ctx.Done():
	case <-ctl.shutdown:
		limit = drainLimit
	case <-ctl.failed:
	case <-ctl.unneeded:
		cfg.Log.Info("egress: nobody needs it any more")
	}
	// First the way in, so that a successor may take over; the lock last of it.
	ctl.close()
	g.stopListening()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	after := g.handOver(drain)
	_ = lock.Close()
	eg.Go(func() error { after.follow(); return nil })
	if limit == drainLimit {
		stop := context.AfterFunc(ctx, cancel) // a second wish to stop doesn't wait
		defer stop()
	}
	g.drain(drain)
	cancel()
	after.pending.Wait()
	return eg.Wait()
}

// lockFile takes the file's lock, waiting for it a little: a predecessor may be
// on its way out. The lock ends with the process, whatever it dies of.
func lockFile(ctx context.Context, path string, patience time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("egress: lock: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("egress: lock: %w", err)
		}
		if !sleep(ctx, 20*time.Millisecond) {
			_ = f.Close()
			return nil, ErrRunning
		}
	}
}

// sleep waits for d and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
