// Package sandbox makes, keeps, finds again and discards sandboxes: a
// container with the shim as its first process, the directories that are
// mounted into it, and the two sockets by which it reaches the server and
// egress. It knows runs only as labels.
//
// It promises that a sandbox has no network device but loopback, a read-only
// root and no capability but the shim's three, save where hooks are to have
// more (Spec), and that the agent never has uid 0. It refuses, before anything is made, what could not hold those promises.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// Paths in every sandbox.
const (
	HomePath      = "/home/agent"
	WorkspacePath = "/workspace"

	runPath  = "/run/stromboli"
	hostPath = runPath + "/host"
	shimPath = runPath + "/shim"
	cliPath  = "/opt/stromboli/cli"

	// ConnectPath is a ProxyCommand for the agent's ssh.
	ConnectPath = "/opt/stromboli/bin/" + shim.ConnectName

	zoneinfoPath = "/usr/share/zoneinfo"

	forwardAddr = "127.0.0.1:3128"

	// agentUID is the agent's uid where no directory's owner decides it.
	agentUID = 1000

	// tmpfsBytes holds the spool and nothing else.
	tmpfsBytes = 96 << 20
	spoolBytes = 64 << 20
	lineBytes  = 8 << 20
	shmBytes   = 64 << 20
	pidsLimit  = 1024

	labelInstance = "stromboli.instance"
	labelSandbox  = "stromboli.sandbox"
	labelRun      = "stromboli.run"
)

// Manager makes sandboxes.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	volumes  atomic.Pointer[volumeRules]
	creating slots // at most two containers are being created at a time
	starting slots // and as many agents start as there are CPUs
	facts    *factCache

	maps       mapCache
	reserved   subIDs
	userNSOnce sync.Once
	userNS     UserNS

	copyLimits copyLimits
	holds      holds
	swept      chan struct{} // closed once Sweep's first part is done; nil: nothing to wait for

	mu     sync.Mutex
	boxes  map[string]*Sandbox
	ours   map[string]bool      // ids that somebody answers for: being made, kept, or being discarded
	ending map[string]bool      // those of them that are being discarded
	bases  map[string]uint32    // the ids of sandboxes, by their own: see record.IDBase
	probes map[string]time.Time // when a look at an image was first seen, by the container's id
}

// New returns a Manager.
func New(cfg Config) *Manager {
	if cfg.Sessions == "" {
		cfg.Sessions = filepath.Join(cfg.DataDir, "sessions")
	}
	if cfg.Shared == "" {
		cfg.Shared = cfg.DataDir
	}
	if cfg.HostPath == nil {
		cfg.HostPath = func(path string) string { return path }
	}
	if cfg.StageDir == "" {
		cfg.StageDir = "/run/stromboli-mounts"
	}
	m := &Manager{
		cfg: cfg, log: cfg.Logger,
		creating: make(slots, 2),
		starting: make(slots, max(2, runtime.NumCPU())),
		facts:    newFactCache(cfg.Engine, filepath.Join(cfg.DataDir, "images"), cfg.Instance),
		boxes:    make(map[string]*Sandbox),
		ours:     make(map[string]bool),
		ending:   make(map[string]bool),
		bases:    make(map[string]uint32),
		probes:   make(map[string]time.Time),
		reserved: readSubIDs("/etc/subuid", "/etc/subgid"),

		copyLimits: defaultCopyLimits(),
	}
	m.SetVolumes(cfg.Volumes, cfg.Protected)
	return m
}

// Sandbox is a running sandbox and the way to its shim.
type Sandbox struct {
	record
	Peer *shim.Peer
	// EngineTime is how long the engine took to make the container, the shim to
	// say hello, and both to tell what is in force.
	EngineTime time.Duration
	// Attestation is what is in force; nil for one that was found again.
	Attestation *stromboli.Attestation

	caller  shim.PeerRule // who may speak for it
	disk    *diskUse
	begun   func()             // gives back the slot of its start; nil: it has none
	made    time.Time          // on the monotonic clock
	started atomic.Bool        // the container was started: from then on it may be gone
	oom     atomic.Bool        // it has ended, and memory had run out in it
	stop    context.CancelFunc // of the peer's accept loop
	stopped chan struct{}
	overdue atomic.Bool
}

// MarkOverdue says that the sandbox is being removed because its time is over.
func (s *Sandbox) MarkOverdue() { s.overdue.Store(true) }

// Overdue reports whether MarkOverdue was called.
func (s *Sandbox) Overdue() bool { return s.overdue.Load() }

// Age is how long ago the sandbox was made. It doesn't change with the
// machine's clock, save for the time under an earlier server.
func (s *Sandbox) Age() time.Duration { return time.Since(s.made) }

// OutOfMemory reports whether the container was seen to have ended by the
// kernel's hand, because its memory was used up.
func (s *Sandbox) OutOfMemory() bool { return s.oom.Load() }

func (m *Manager) dir(id string) string { return filepath.Join(m.cfg.Shared, "sb", id) }

func containerName(id string) string { return "stromboli-" + id }

// Home returns a session's home directory. uid and gid are the agent's in the
// sandbox.
func (m *Manager) Home(sessionID string, uid, gid int) Home {
	return m.homeOf(record{SessionID: sessionID, UID: uid, GID: gid})
}

// HomeOf returns the home directory that a sandbox has mounted.
func (m *Manager) HomeOf(box *Sandbox) Home { return m.homeOf(box.record) }

func (m *Manager) homeOf(rec record) Home {
	uid, gid := rec.UID, rec.GID
	if m.cfg.Info.Rootless { // the agent's uid there is our own user on the host
		uid, gid = -1, -1
	}
	return Home{dir: m.ownPath(rec, "home"), uid: uid, gid: gid}
}

// ephemeralName is the directory of an ephemeral session in its sandbox's.
const ephemeralName = "session"

// ownPath is one of a session's own directories.
func (m *Manager) ownPath(rec record, name string) string {
	if rec.Ephemeral {
		return filepath.Join(m.dir(rec.ID), ephemeralName, name)
	}
	return m.sessionPath(rec.SessionID, name)
}

// RemoveSession removes a session's directories. Nobody may be running in it.
func (m *Manager) RemoveSession(id string) error {
	if err := m.removeTree(context.Background(), filepath.Join(m.cfg.Sessions, id)); err != nil {
		return fmt.Errorf("removing the directories of session %s: %w", id, err)
	}
	return nil
}

func (m *Manager) sessionPath(sessionID, name string) string {
	return filepath.Join(m.cfg.Sessions, sessionID, name)
}

// Adopt finds a sandbox of an earlier server again and gives it its reach. The error is shim.ErrGone
// when it runs no more, or can't be spoken with.
func (m *Manager) Adopt(ctx context.Context, id string, reach Reach) (*Sandbox, error) {
	alive, _, err := m.alive(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, err)
	}
	if !alive {
		return nil, fmt.Errorf("sandbox %s: %w", id, shim.ErrGone)
	}
	rec, err := m.readRecord(id)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, err)
	}
	m.rememberIDs(rec)
	box, err := m.listen(rec) //nolint:contextcheck // it is served until it is closed
	if err != nil {
		return nil, err
	}
	box.started.Store(true)
	if box.caller, err = m.caller(ctx, rec); err != nil {
		return nil, errors.Join(err, m.Release(box))
	}
	if err := m.openEgress(ctx, rec, box.caller, reach); err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(err, m.Release(box))
		}
		// What the agent has said can be read all the same.
		m.log.WarnContext(ctx, "giving a sandbox its way out again", "sandbox", id, "error", err)
	}
	return box, nil
}

// egressTime bounds the wait for an egress that is not there.
const egressTime = 20 * time.Second

func (m *Manager) openEgress(ctx context.Context, rec record, peer shim.PeerRule, reach Reach) error {
	ctx, cancel := context.WithTimeout(ctx, egressTime)
	defer cancel()
	return m.cfg.Egress.Add(ctx, Door{
		ID: rec.ID, RunID: rec.RunID, Socket: m.socket(rec.ID, "egress.sock"), Token: rec.Token, Peer: peer, Reach: reach, Identity: rec.Identity,
	})
}

// SetReach changes what egress does for a living sandbox, for connections that
// begin from now on and those that are open: what is no more permitted is cut.
// It holds once it has returned.
func (m *Manager) SetReach(ctx context.Context, box *Sandbox, reach Reach) error {
	return m.openEgress(ctx, box.record, box.caller, reach)
}

func (m *Manager) socket(id, name string) string { return filepath.Join(m.dir(id), "run", name) }

// listen opens the server's socket of a sandbox and serves it until the
// sandbox is closed.
func (m *Manager) listen(rec record) (*Sandbox, error) {
	ctx, stop := context.WithCancel(context.Background())
	box := &Sandbox{record: rec, stop: stop, stopped: make(chan struct{}), disk: m.newDiskUse(rec), made: time.Now().Add(-max(time.Since(rec.CreatedAt), 0))}
	peer, err := shim.Listen(shim.PeerConfig{
		Path: m.socket(rec.ID, "server.sock"), SandboxID: rec.ID, Token: rec.Token,
		PeerUID: func(ctx context.Context) (shim.PeerRule, error) { return m.caller(ctx, rec) },
		Alive: func(ctx context.Context) (bool, error) {
			if !box.started.Load() {
				return true, nil
			}
			alive, oom, err := m.alive(ctx, rec.ID)
			if err == nil && !alive {
				box.oom.Store(oom)
			}
			return alive, err
		},
		Log: m.log.With("run_id", rec.RunID),
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("listening for the sandbox: %w", err)
	}
	box.Peer = peer
	go func() {
		defer close(box.stopped)
		if err := peer.Run(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, shim.ErrGone) {
			m.log.Error("serving a sandbox's socket", "sandbox", rec.ID, "run_id", rec.RunID, "error", err)
		}
	}()
	m.mu.Lock()
	m.boxes[rec.ID] = box
	m.mu.Unlock()
	return box, nil
}

func (s *Sandbox) close() error {
	s.Begun()
	s.stop()
	err := s.Peer.Close()
	<-s.stopped
	return err
}

// Release lets go of a sandbox that goes on for the next server.
func (m *Manager) Release(box *Sandbox) error {
	m.mu.Lock()
	if m.boxes[box.ID] == box { // else another run is in it
		delete(m.boxes, box.ID)
	}
	m.mu.Unlock()
	return box.close()
}

// alive asks the engine whether the sandbox's container runs, and if not,
// whether memory had run out.
func (m *Manager) alive(ctx context.Context, id string) (alive, oom bool, err error) {
	c, err := m.cfg.Engine.Inspect(ctx, containerName(id))
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return false, false, nil
	case err != nil:
		return false, false, err
	}
	return c.State == engine.StateRunning || c.State == engine.StatePaused, c.OOMKilled && c.ExitCode == 128+int(syscall.SIGKILL), nil
}

// Discard removes a sandbox, its container and its directory. What is gone
// already is a success.
func (m *Manager) Discard(ctx context.Context, id string) error {
	free, err := m.holds.take(ctx, id)
	if err != nil {
		return fmt.Errorf("discarding sandbox %s: %w", id, err)
	}
	defer free()
	m.mu.Lock()
	box := m.boxes[id]
	delete(m.boxes, id)
	m.ending[id] = true
	m.mu.Unlock()
	m.exit(ctx, box)
	err = m.cfg.Engine.Remove(ctx, containerName(id))
	if box != nil {
		if err == nil {
			box.Peer.Gone() // whoever still listens to it learns the truth
		}
		err = errors.Join(err, box.close())
	}
	if err != nil {
		return fmt.Errorf("discarding sandbox %s: %w", id, err)
	}
	if err := m.unstage(id); err != nil {
		return fmt.Errorf("discarding sandbox %s: %w", id, err)
	}
	if err := m.cfg.Egress.Remove(ctx, id); err != nil {
		return fmt.Errorf("discarding sandbox %s: %w", id, err)
	}
	if err := m.removeTree(ctx, m.dir(id)); err != nil {
		return fmt.Errorf("discarding sandbox %s: %w", id, err)
	}
	m.mu.Lock()
	delete(m.ours, id)
	delete(m.ending, id)
	delete(m.bases, id)
	m.mu.Unlock()
	return nil
}

// exit has a sandbox end by itself, if it does so at once: that makes a removal
// three times as fast.
func (m *Manager) exit(ctx context.Context, box *Sandbox) {
	if box == nil || !box.started.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := box.Peer.Exit(ctx); err == nil {
		_, _ = m.cfg.Engine.Wait(ctx, containerName(box.ID))
	}
}
