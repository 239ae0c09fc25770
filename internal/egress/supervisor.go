package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startLimit  = 15 * time.Second
	replaceWait = 10 * time.Second
	maxBackoff  = 2 * time.Second
	maxLog      = 8 << 20
)

// SupervisorConfig is what a Supervisor needs; Dir is required.
type SupervisorConfig struct {
	// Dir is the egress process's directory; it is made, 0700, if missing.
	Dir string
	// Command starts a process that calls Serve on Dir; Env is its environment.
	// Empty: somebody else keeps one running, and it is waited for.
	Command []string
	Env     []string
	// Build is this program's version: a process of another one is replaced,
	// and drains. Empty: whatever runs is kept.
	Build string
	Log   *slog.Logger
}

// Supervisor keeps an egress process running on the server's behalf, and is
// the truth about what it should do: configuration and registrations live here
// and are replayed to each new process.
type Supervisor struct {
	cfg    SupervisorConfig
	client *Client
	child  int // pid to reap, 0: none; Run's alone

	// pushing is held, as a token, while something is told to the process, so
	// that a replay can't bring back what has been removed meanwhile.
	pushing chan struct{}

	mu        sync.Mutex
	config    *Config
	sandboxes map[string]Sandbox
	up        bool          // a process is there and knows everything
	changed   chan struct{} // closed when up changes
}

// NewSupervisor starts nothing; see Run.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Supervisor{
		cfg: cfg, client: NewClient(cfg.Dir), pushing: make(chan struct{}, 1),
		sandboxes: map[string]Sandbox{}, changed: make(chan struct{}),
	}
}

// Run keeps the process running until ctx ends, which it returns as nil. The
// process itself goes on: the next server adopts it.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	backoff := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := s.session(ctx)
		s.setUp(false)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > 5*time.Second {
			backoff = 0
		}
		s.cfg.Log.Warn("egress: the process has gone; starting it again", "error", err, "after", backoff)
		sleep(ctx, backoff)
		backoff = min(max(2*backoff, 20*time.Millisecond), maxBackoff)
	}
	s.reap()
	return nil //nolint:nilerr // the end of ctx is what ends it
}

// session is one process's life as seen from here; it returns when that ends.
func (s *Supervisor) session(ctx context.Context) error {
	st, err := s.ensure(ctx)
	if err != nil {
		return err
	}
	watch, err := s.client.watch(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }()
	if err := s.replay(ctx); err != nil {
		return err
	}
	s.setUp(true)
	s.cfg.Log.Info("egress: connected", "pid", st.PID, "build", st.Build, "sandboxes", len(st.Sandboxes))
	_, err = io.Copy(io.Discard, watch)
	if err == nil {
		err = io.EOF
	}
	return fmt.Errorf("egress: watching pid %d: %w", st.PID, err)
}

// ensure returns the status of a process that answers, started if need be.
func (s *Supervisor) ensure(ctx context.Context) (Status, error) {
	s.reap()
	if st, err := s.client.Status(ctx); err == nil && !s.outdated(st) {
		return st, nil
	}
	if len(s.cfg.Command) == 0 {
		return Status{}, s.others(ctx)
	}
	lock, err := lockFile(ctx, filepath.Join(s.cfg.Dir, startLock), startLimit)
	if err != nil {
		return Status{}, fmt.Errorf("egress: somebody else is starting it: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if st, err := s.client.Status(ctx); err == nil {
		if !s.outdated(st) {
			return st, nil
		}
		s.cfg.Log.Info("egress: replacing a process of another build", "pid", st.PID, "build", st.Build)
		if err := s.client.Shutdown(ctx); err != nil {
			return Status{}, err
		}
	}
	if err := s.start(); err != nil {
		return Status{}, err
	}
	return s.waitStarted(ctx)
}

// others asks for a process that somebody else starts: one of another build
// drains and is started anew by whoever keeps it.
func (s *Supervisor) others(ctx context.Context) error {
	st, err := s.client.Status(ctx)
	if err != nil {
		return fmt.Errorf("egress: no process serves %s, and another service should start it (`stromboli egress --stay --dir %s`): %w", s.cfg.Dir, s.cfg.Dir, err)
	}
	s.cfg.Log.Info("egress: asking a process of another build to end", "pid", st.PID, "build", st.Build)
	return errors.Join(fmt.Errorf("egress: pid %d is of another build (%s): start that of this one", st.PID, st.Build), s.client.Shutdown(ctx))
}

func (s *Supervisor) outdated(st Status) bool {
	return st.Protocol != protocol || (s.cfg.Build != "" && st.Build != s.cfg.Build)
}

// start runs the command in a session of its own, its output in a file: no
// signal to the server's group and no broken pipe may end it.
func (s *Supervisor) start() error {
	path := filepath.Join(s.cfg.Dir, logFile)
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	out, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("egress: log: %w", err)
	}
	defer func() { _ = out.Close() }()
	program, err := exec.LookPath(s.cfg.Command[0])
	if err == nil {
		program, err = filepath.Abs(program) // it is started in another directory
	}
	if err != nil {
		return fmt.Errorf("egress: start: %w", err)
	}
	cmd := exec.Command(program, s.cfg.Command[1:]...) //nolint:noctx // the caller's command, which outlives every context here
	cmd.Dir = s.cfg.Dir
	cmd.Env = s.cfg.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would pass the server's on
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("egress: start: %w", err)
	}
	s.child = cmd.Process.Pid
	_ = cmd.Process.Release() // reaped by pid, so that no goroutine need wait for it
	return nil
}

func (s *Supervisor) waitStarted(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit+replaceWait)
	defer cancel()
	for {
		st, err := s.client.Status(ctx)
		if err == nil && !s.outdated(st) {
			return st, nil
		}
		if status, ended := s.reap(); ended {
			return Status{}, fmt.Errorf("egress: it ended at once (status %d): see %s", status, filepath.Join(s.cfg.Dir, logFile))
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return Status{}, fmt.Errorf("egress: it did not answer after its start: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// reap collects the child if it has ended.
func (s *Supervisor) reap() (status int, ended bool) {
	if s.child == 0 {
		return 0, false
	}
	var ws unix.WaitStatus
	pid, err := unix.Wait4(s.child, &ws, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) || (err == nil && pid == 0) {
		return 0, false
	}
	s.child = 0
	return int(ws), true
}

// replay tells a process everything.
func (s *Supervisor) replay(ctx context.Context) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	s.mu.Lock()
	config, sandboxes := s.config, slices.Collect(maps.Values(s.sandboxes))
	s.mu.Unlock()
	if config != nil {
		if err := s.client.SetConfig(ctx, *config); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	for _, sb := range sandboxes {
		err := s.client.Add(ctx, sb)
		if errors.Is(err, ErrRejected) { // its directory has gone, perhaps: the others must not suffer
			s.cfg.Log.Warn("egress: a sandbox could not be registered again", "sandbox", sb.ID, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	return nil
}

// SetConfig makes cfg hold for requests that begin from now on, in this process
// and in each that follows it. While none is there it waits for one.
func (s *Supervisor) SetConfig(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	s.config = &cfg
	s.mu.Unlock()
	return s.push(ctx, func(ctx context.Context) error {
		s.mu.Lock()
		current := s.config
		s.mu.Unlock()
		return s.client.SetConfig(ctx, *current)
	})
}

// Add registers a sandbox, or changes its registration, and returns when egress
// listens on its socket. While no process is there it waits for one. The
// registration is kept and replayed until Remove, also after an error.
func (s *Supervisor) Add(ctx context.Context, sb Sandbox) error {
	if err := sb.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	s.sandboxes[sb.ID] = sb
	s.mu.Unlock()
	return s.push(ctx, func(ctx context.Context) error {
		s.mu.Lock()
		current, ok := s.sandboxes[sb.ID]
		s.mu.Unlock()
		if !ok {
			return fmt.Errorf("%w: sandbox %s was removed meanwhile", ErrRejected, sb.ID)
		}
		return s.client.Add(ctx, current)
	})
}

// Remove forgets a sandbox and ends its connections. An unknown one is fine,
// and so is a process that isn't there: it has no connections either.
func (s *Supervisor) Remove(ctx context.Context, id string) error {
	s.mu.Lock()
	delete(s.sandboxes, id)
	s.mu.Unlock()
	for {
		if err := s.acquire(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		up := s.up
		s.mu.Unlock()
		err := s.client.Remove(ctx, id)
		s.release()
		if err == nil || errors.Is(err, ErrRejected) {
			return err
		}
		if !up {
			return nil
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("egress: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// Retain removes every sandbox that an adopted process serves and that is not
// in ids: a server calls it once it has found its own again.
func (s *Supervisor) Retain(ctx context.Context, ids []string) error {
	var st Status
	err := s.push(ctx, func(ctx context.Context) (err error) {
		st, err = s.client.Status(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range st.Sandboxes {
		if !slices.Contains(ids, id) {
			err = errors.Join(err, s.Remove(ctx, id))
		}
	}
	return err
}

// Status asks the process about itself; it fails when none is there.
func (s *Supervisor) Status(ctx context.Context) (Status, error) { return s.client.Status(ctx) }

// push tells the process something; when the process dies meanwhile, it waits
// for the next one, and ends when that has been told.
func (s *Supervisor) push(ctx context.Context, tell func(context.Context) error) error {
	for {
		if err := s.waitUp(ctx); err != nil {
			return err
		}
		if err := s.acquire(ctx); err != nil {
			return err
		}
		err := tell(ctx)
		s.release()
		if err == nil || errors.Is(err, ErrRejected) {
			return err
		}
		// The connection failed: Run notices by itself, very soon.
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("egress: %w", errors.Join(ctx.Err(), err))
		}
	}
}

func (s *Supervisor) acquire(ctx context.Context) error {
	select {
	case s.pushing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("egress: %w", ctx.Err())
	}
}

func (s *Supervisor) release() { <-s.pushing }

func (s *Supervisor) setUp(up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up != up {
		s.up = up
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

func (s *Supervisor) waitUp(ctx context.Context) error {
	for {
		s.mu.Lock()
		up, changed := s.up, s.changed
		s.mu.Unlock()
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("egress is not there: %w", ctx.Err())
		}
	}
}
