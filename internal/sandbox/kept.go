package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// A kept sandbox is a stopped container and the sandbox's directory: what was
// written into its root file system and /tmp is there when it is started again,
// and nothing else is. Which sandboxes are kept is for others to record, before
// they call Keep.

// UnusableError says why a kept sandbox can't have another run. It is to be
// discarded.
type UnusableError struct {
	Why string // completes "the sandbox of the session's run before …"
	err error
}

func (e *UnusableError) Error() string {
	if e.err != nil {
		return e.Why + ": " + e.err.Error()
	}
	return e.Why
}

func (e *UnusableError) Unwrap() error { return e.err }

// Keep stops the sandbox of a run that has ended. It may be repeated, and changes
// nothing once the sandbox has another run, or is gone.
func (m *Manager) Keep(ctx context.Context, id, runID string) error {
	free, err := m.holds.take(ctx, id)
	if err != nil {
		return err
	}
	defer free()
	m.mu.Lock()
	box := m.boxes[id]
	m.mu.Unlock()
	if box != nil && box.RunID != runID {
		return nil
	}
	if rec, err := m.readRecord(id); errors.Is(err, shim.ErrGone) || err == nil && rec.RunID != runID {
		return nil
	}
	err = m.park(ctx, id)
	if errors.Is(err, engine.ErrNotFound) { // whoever asks for it will find that out
		return nil
	}
	return err
}

// park stops a sandbox's container and closes all that leads to it. The error is
// engine.ErrNotFound where there is none. The sandbox is held.
func (m *Manager) park(ctx context.Context, id string) error {
	m.mu.Lock()
	box := m.boxes[id]
	delete(m.boxes, id)
	m.mu.Unlock()
	m.exit(ctx, box)
	err := m.stop(ctx, id)
	if box != nil {
		if err == nil {
			box.Peer.Gone()
		}
		err = errors.Join(err, box.close())
	}
	if err == nil {
		err = m.unstage(id)
	}
	if err == nil {
		err = m.cfg.Egress.Remove(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("stopping sandbox %s: %w", id, err)
	}
	return nil
}

func (m *Manager) stop(ctx context.Context, id string) error {
	c, err := m.cfg.Engine.Inspect(ctx, containerName(id))
	if err != nil || c.State == engine.StateExited || c.State == engine.StateCreated {
		return err
	}
	return m.cfg.Engine.Stop(ctx, c.ID, 0)
}

// parkIdle stops a kept sandbox in which no run of this server is.
func (m *Manager) parkIdle(ctx context.Context, id string) error {
	free, err := m.holds.take(ctx, id)
	if err != nil {
		return err
	}
	defer free()
	m.mu.Lock()
	box := m.boxes[id]
	m.mu.Unlock()
	if box != nil {
		return nil
	}
	return m.park(ctx, id)
}

// Resume starts a kept sandbox for another run and returns when its shim has said
// hello and what is in force was read back, as Create does. On an error the
// sandbox is stopped again; where that is an UnusableError it never will do for
// this run.
func (m *Manager) Resume(ctx context.Context, s Spec) (_ *Sandbox, err error) {
	if err := m.awaitSweep(ctx); err != nil {
		return nil, err
	}
	free, err := m.holds.take(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	defer free()
	if s.secrets, err = m.engineSecrets(ctx, s.EngineSecrets); err != nil {
		return nil, err
	}
	rec, err := m.keptRecord(ctx, s)
	if err != nil {
		return nil, err
	}
	begun, err := m.starting.take(ctx)
	if err != nil {
		return nil, err
	}
	created, err := m.creating.take(ctx)
	if err != nil {
		begun()
		return nil, err
	}
	defer created()
	box, err := m.restart(ctx, s, rec)
	if err != nil {
		begun()
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if perr := m.park(clean, s.ID); perr != nil && !errors.Is(perr, engine.ErrNotFound) {
			m.log.WarnContext(clean, "stopping a kept sandbox that could not be used", "sandbox", s.ID, "error", perr)
		}
		return nil, m.unusable(ctx, err)
	}
	box.begun = begun
	time.AfterFunc(settleTime, begun)
	return box, nil
}

// keptRecord is the record of a kept sandbox for its next run.
func (m *Manager) keptRecord(ctx context.Context, s Spec) (record, error) {
	old, err := m.readRecord(s.ID)
	if errors.Is(err, shim.ErrGone) {
		return record{}, &UnusableError{Why: "is gone"}
	}
	if err != nil {
		return record{}, err
	}
	rec := m.record(s, s.Checked)
	rec.UserNS, rec.UserNSWhy, rec.IDBase, rec.RootDir, rec.Resumed = old.UserNS, old.UserNSWhy, old.IDBase, old.RootDir, true
	if best := m.UserNS(); best.Mode != UserNSAuto { // else one sandbox's reason may have been its own
		rec.UserNS, rec.UserNSWhy = best.Mode, best.Why
	}
	rec.RootHooks = m.rootHooks(s, rec)
	made, _, err := m.made(ctx, s, rec)
	if err != nil {
		return record{}, err
	}
	rec.Made = made
	switch why, err := differs(old.Made, made); {
	case err != nil:
		return record{}, err
	case why != "":
		return record{}, &UnusableError{Why: "was made with " + why}
	case old.UID != rec.UID || old.GID != rec.GID:
		return record{}, &UnusableError{Why: "was made for another owner of the workspace"}
	}
	return rec, nil
}

// restart starts the container of a kept sandbox.
func (m *Manager) restart(ctx context.Context, s Spec, rec record) (*Sandbox, error) {
	begin := time.Now()
	// A server that died may not have stopped it, or just have started it.
	if err := m.park(ctx, s.ID); err != nil {
		return nil, err
	}
	if err := m.sessionDirs(rec); err != nil {
		return nil, storage(err)
	}
	if err := m.files(ctx, s, &rec); err != nil {
		return nil, storage(err)
	}
	if s.BeforeStart != nil {
		if err := s.BeforeStart(m.homeOf(rec)); err != nil {
			return nil, storage(err)
		}
	}
	userNS := rec.UserNS
	if err := m.stage(&rec, m.agentMounts(rec, s.Checked)); err != nil {
		return nil, err
	}
	if rec.UserNS != userNS {
		return nil, fmt.Errorf("its directories can't be mounted as before: %s", rec.UserNSWhy)
	}
	box, err := m.listen(rec) //nolint:contextcheck // it is served until it is closed
	if err != nil {
		return nil, storage(err)
	}
	if err := m.cfg.Engine.Start(ctx, containerName(s.ID)); err != nil {
		return nil, m.missingSource(s.Checked, err)
	}
	box.started.Store(true)
	if err := m.bringUp(ctx, s, box); err != nil {
		return nil, err
	}
	box.EngineTime = time.Since(begin)
	return box, nil
}

// unusable tells whether an error is about the kept sandbox: what is wrong with
// the run or the host would be wrong with a new one too.
func (m *Manager) unusable(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, engine.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if slices.Contains([]stromboli.Code{
		stromboli.EngineDown, stromboli.StorageFull, stromboli.SessionUnusable, stromboli.NotConfigured, stromboli.Invalid,
	}, stromboli.CodeOf(err)) {
		return err
	}
	if errors.Is(err, engine.ErrNotFound) {
		return &UnusableError{Why: "was removed by others", err: err}
	}
	return &UnusableError{Why: "could not be started again", err: err}
}

// differs says what of two containers is not the same; empty: nothing.
func differs(old, now engine.ContainerSpec) (string, error) {
	own := make(map[string]bool)
	for _, t := range ownTargets() {
		own[t] = true
	}
	server := func(mt engine.Mount) bool { return own[mt.Target] || strings.HasPrefix(mt.Target, zoneinfoPath+"/") }
	split := func(s *engine.ContainerSpec) (servers []engine.Mount) {
		for _, mt := range s.Mounts {
			if server(mt) {
				servers = append(servers, mt)
			}
		}
		s.Mounts = slices.DeleteFunc(slices.Clone(s.Mounts), server)
		return servers
	}
	oldOwn, nowOwn := split(&old), split(&now)
	type limits struct{ memory, cpus, shares int64 }
	limitsOf := func(s engine.ContainerSpec) limits { return limits{s.MemoryBytes, s.NanoCPUs, s.CPUShares} }
	switch {
	case old.Image != now.Image:
		return "another image", nil
	case limitsOf(old) != limitsOf(now):
		return "other limits", nil
	case old.Network != now.Network:
		return "another kind of network", nil
	case !slices.Equal(old.Mounts, now.Mounts):
		return "other volumes, or another workdir", nil
	case !slices.Equal(old.Secrets, now.Secrets):
		return "other secrets of the engine's", nil
	case !slices.Equal(oldOwn, nowOwn):
		return "another version of the server or the agent CLI", nil
	}
	a, err1 := json.Marshal(old)
	b, err2 := json.Marshal(now)
	if !bytes.Equal(a, b) {
		return "another configuration of the server", errors.Join(err1, err2)
	}
	return "", errors.Join(err1, err2)
}

// holds make what is done to one sandbox by several wait for each other.
type holds struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is free again
}

// take waits until nobody holds the id; free lets it go.
func (h *holds) take(ctx context.Context, id string) (free func(), err error) {
	for {
		h.mu.Lock()
		taken := h.held[id]
		if taken == nil {
			done := make(chan struct{})
			if h.held == nil {
				h.held = make(map[string]chan struct{})
			}
			h.held[id] = done
			h.mu.Unlock()
			return func() {
				h.mu.Lock()
				delete(h.held, id)
				h.mu.Unlock()
				close(done)
			}, nil
		}
		h.mu.Unlock()
		select {
		case <-taken:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
