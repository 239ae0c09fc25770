package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
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
// registration is kept and replayed until Remove, also after an error. One that
// is closed stays so.
func (s *Supervisor) Add(ctx context.Context, sb Sandbox) error {
	if err := sb.validate(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.sandboxes[sb.ID].Closed && !sb.Closed { // a change that comes too late opens nothing
		s.mu.Unlock()
		return nil
	}
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

// Close ends a sandbox's connections and lets no more begin; Records then tells
// of all of them without waiting, until Remove.
func (s *Supervisor) Close(ctx context.Context, id string) error {
	return s.Add(ctx, Sandbox{ID: id, Closed: true})
}

// Records returns a sandbox's records after a position, at most limit, waiting
// for one for so long. Up to the position they are forgotten.
func (s *Supervisor) Records(ctx context.Context, id string, after int64, limit int, wait time.Duration) ([]stromboli.EgressRecord, error) {
	if err := s.waitUp(ctx); err != nil {
		return nil, err
	}
	return s.client.Records(ctx, id, after, limit, wait)
}

// Remove forgets a sandbox with its records and ends its connections. An unknown one is fine,
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
			if validID(id) {
				_ = os.Remove(auditPath(s.cfg.Dir, id)) // the process would have
			}
			return nil
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("egress: %w", errors.Join(ctx.Err(), err))
		}
	}
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
