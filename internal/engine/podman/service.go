package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// service is a `podman system service` of our own.
type service struct {
	places
	podman string
	flags  []string // before the subcommand
	env    []string
	text   string // of containers.conf
	client *Client
	log    *slog.Logger

	mu    sync.Mutex // held while the service is looked for or started
	child int        // pid of the process that this one started last, until reaped
}

const (
	startLimit = 30 * time.Second       // for a service to answer
	pollEvery  = 5 * time.Millisecond   // while it starts
	maxLog     = 4 << 20                // bytes; a longer log is emptied at the next start
	stopGrace  = 5 * time.Second        // between TERM and KILL
	backoffMax = 5 * time.Second        // between attempts to start it
	pingEvery  = 15 * time.Second       // while it seems well
	settle     = 100 * time.Millisecond // before a lost watch connection is made anew
)

// newService prepares everything but the start.
func newService(ctx context.Context, c *Client, cfg OpenConfig, env map[string]string) (*service, error) {
	if c.podman == "" {
		return nil, unavailable("prepare a Podman service", "podman is not installed; on Debian and Ubuntu: apt-get install podman runc uidmap")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare a Podman service: %w", err)
	}
	p := placesIn(dir)
	if err := checkSocketPath(p.socket); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare a Podman service: %w", err)
	}
	if err := p.makeRun(); err != nil {
		return nil, fmt.Errorf("prepare a Podman service: %w", err)
	}
	p.private = cfg.PrivateStore
	xdg := ""
	if !c.host.Root {
		if err := checkRootless(env); err != nil {
			return nil, err
		}
		if xdg = runtimeDir(env); xdg == "" {
			xdg = p.run
		}
		if !p.private {
			bare := p
			bare.conf = ""
			p.private = !userStoreUsable(ctx, c.podman, env, serviceEnv(env, bare, xdg))
		}
	}
	if p.private {
		c.log.Info("the engine uses a store of its own", "path", p.store)
	}
	s := &service{
		places: p, podman: c.podman, client: c, log: c.log,
		flags: p.storeFlags(), env: serviceEnv(env, p, xdg),
		text: containersConf(c.host, p, env, c.log),
	}
	if !c.host.CgroupV2 && !c.host.Runc {
		c.notes = append(c.notes, "this machine has cgroup v1 or hybrid cgroups: install runc, crun does not work with them")
	}
	return s, nil
}

// ensure returns when the service answers, started by this call if need be.
// Concurrent calls, in this process or others, start it once.
func (s *service) ensure(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ping(ctx) == nil {
		return nil
	}
	unlock, err := lockFile(ctx, s.lock)
	if err != nil {
		return fmt.Errorf("start the Podman service: %w", err)
	}
	defer unlock()
	if s.ping(ctx) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start the Podman service: %w", err)
	}
	// One that holds the socket without answering would remove its
	// successor's socket at its own end.
	if err := s.end(ctx, unix.SIGKILL); err != nil {
		return err
	}
	return s.start(ctx)
}

// start is called with the lock held and no service alive.
func (s *service) start(ctx context.Context) error {
	const op = "start the Podman service"
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := s.forgetLastBoot(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := os.WriteFile(s.conf, []byte(s.text), 0o600); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	logFile, err := s.openLog()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer func() { _ = logFile.Close() }()
	from, err := logFile.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	argv := append(append([]string{}, s.flags...), "--log-level=warn", "system", "service", "-t", "0", "unix://"+s.socket)
	// It outlives this call and this process, so no context ends it; with files
	// as output there is no pipe that could break.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), s.podman, argv...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.env, s.dir, logFile, logFile
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return unavailable(op, err.Error())
	}
	s.child = cmd.Process.Pid
	_ = cmd.Process.Release()
	began := time.Now()
	for s.ping(ctx) != nil {
		if s.reap() {
			return unavailable(op, "it ended at once: "+s.logTail(from))
		}
		// One that was given up must not come up later beside the next.
		if time.Since(began) > startLimit {
			return errors.Join(unavailable(op, "it doesn't answer: "+s.logTail(from)), s.end(context.WithoutCancel(ctx), unix.SIGKILL))
		}
		if err := pause(ctx, pollEvery); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", op, err), s.end(context.WithoutCancel(ctx), unix.SIGKILL))
		}
	}
	s.log.Info("started a Podman service", "socket", s.socket, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// run keeps a connection to the service open: its end is the service's end, at
// once and whoever started it.
func (s *service) run(ctx context.Context) error {
	backoff := settle
	for ctx.Err() == nil {
		if err := s.ensure(ctx); err != nil {
			if ctx.Err() != nil {
				break
			}
			s.log.Error("the Podman service doesn't start", "err", err, "again_in", backoff)
			if pause(ctx, backoff) != nil {
				break
			}
			backoff = min(2*backoff, backoffMax)
			continue
		}
		backoff = settle
		if conn, err := dialSocket(ctx, s.socket); err == nil {
			s.hold(ctx, conn)
		}
		if ctx.Err() == nil && s.ping(ctx) == nil {
			// The connection alone ended. Don't spin.
			_ = pause(ctx, settle)
		} else if ctx.Err() == nil {
			s.log.Warn("the Podman service is gone")
		}
		s.mu.Lock()
		s.reap()
		s.mu.Unlock()
	}
	return nil //nolint:nilerr // the end of ctx is what ends it
}

// hold blocks until the other end closes conn, ctx ends, or the service has
// twice given no answer.
func (s *service) hold(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	one := make([]byte, 1)
	for silent := 0; silent < 2 && ctx.Err() == nil; {
		if conn.SetReadDeadline(time.Now().Add(pingEvery)) != nil {
			return
		}
		if _, err := conn.Read(one); !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if silent++; s.ping(ctx) == nil {
			silent = 0
		}
	}
}

// ping asks on a connection of its own and never starts anything. A refused
// connection is answered at once; one that is accepted gets time, since a busy
// service is not a dead one.
func (s *service) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := dialSocket(ctx, s.socket)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := io.WriteString(conn, "GET "+apiPrefix+"/_ping HTTP/1.1\r\nHost: podman\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	head := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	if !bytes.HasSuffix(head, []byte(" 200")) {
		return errors.New("not ready: " + string(head))
	}
	return nil
}

// stop ends the service, whoever started it.
func (s *service) stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unlock, err := lockFile(ctx, s.lock)
	if err != nil {
		return fmt.Errorf("stop the Podman service: %w", err)
	}
	defer unlock()
	return s.end(ctx, unix.SIGTERM)
}

// end sends sig to every process that serves our socket, later KILL, until
// there is none. A crash may have left one that never got to listen, so it
// goes by the command line, which names a path that only we use.
func (s *service) end(ctx context.Context, sig unix.Signal) error {
	const op = "stop the Podman service"
	began := time.Now()
	for {
		pids, err := s.servers()
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		s.reap()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, sig)
		}
		if time.Since(began) > stopGrace {
			sig = unix.SIGKILL
		}
		if time.Since(began) > 3*stopGrace {
			return unavailable(op, fmt.Sprintf("process %d doesn't end", pids[0]))
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
}

// servers gives the processes that serve our socket: one, or two where Podman
// made itself a user namespace.
func (s *service) servers() ([]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	want := []byte("\x00system\x00service\x00-t\x000\x00unix://" + s.socket + "\x00")
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !bytes.HasSuffix(data, want) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// reap collects the child that has ended, and reports whether it has.
func (s *service) reap() bool {
	if s.child == 0 {
		return false
	}
	pid, err := unix.Wait4(s.child, nil, unix.WNOHANG, nil)
	if pid == s.child || errors.Is(err, unix.ECHILD) {
		s.child = 0
		return true
	}
	return false
}
