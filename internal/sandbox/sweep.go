package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Left counts the containers of this server.
func (m *Manager) Left(ctx context.Context) (int, error) {
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	return len(containers), err
}

// Working counts those that don't merely wait, stopped, for another run.
func (m *Manager) Working(ctx context.Context) (int, error) {
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	containers = slices.DeleteFunc(containers, func(c engine.Container) bool { return c.State == engine.StateExited })
	return len(containers), err
}

// sweepers is how many sandboxes are removed at a time.
const sweepers = 4

// Claims are the sandboxes, by their ids, that somebody answers for.
type Claims struct {
	Running map[string]bool // they have a run in them
	Kept    map[string]bool // they wait for another run
}

// Sweep finds the sandboxes of this server that nobody claims: what a
// server's death left half-made or half-removed. The function that it returns
// discards them, which may take minutes, until ctx ends; what can't be removed
// is tried again by Run, or by the next server. It also stops kept ones that were
// not stopped. Until those of the unclaimed that may hold an agent at work are
// gone, no new sandbox is made.
func (m *Manager) Sweep(ctx context.Context, claims Claims) (discard func(ctx context.Context), err error) {
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(m.cfg.Shared, "sb"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := m.unstageAll(); err != nil {
		m.log.WarnContext(ctx, "taking away what the server before had mounted", "error", err)
	}
	for _, e := range entries {
		if rec, err := m.readRecord(e.Name()); err == nil {
			m.rememberIDs(rec)
		}
	}
	m.claim(claims.Running)
	m.claim(claims.Kept)
	left := make(map[string]bool) // by id; whether it may be at work
	var probes []engine.Container
	var kept []string
	for _, c := range containers {
		atWork := c.State != engine.StateCreated && c.State != engine.StateExited
		switch id := c.Labels[labelSandbox]; {
		case id == "": // a look at an image
			probes = append(probes, c)
		case claims.Running[id]:
		case claims.Kept[id]:
			kept = append(kept, id)
		default:
			left[id] = atWork
		}
	}
	for _, e := range entries {
		if id := e.Name(); !claims.Running[id] && !claims.Kept[id] && !left[id] {
			left[id] = false
		}
	}
	var working, idle []string
	for id, atWork := range left {
		if atWork {
			working = append(working, id)
		} else {
			idle = append(idle, id)
		}
	}
	m.claim(left)
	if len(working) > 0 {
		m.swept = make(chan struct{})
	}
	return func(ctx context.Context) {
		m.discardAll(ctx, working)
		if len(working) > 0 {
			close(m.swept)
		}
		for _, c := range probes {
			if err := m.cfg.Engine.Remove(ctx, c.ID); err != nil {
				m.log.WarnContext(ctx, "removing a container of the server before", "container", c.Name, "error", err)
			}
		}
		for _, id := range kept {
			if err := m.parkIdle(ctx, id); err != nil {
				m.log.WarnContext(ctx, "stopping a kept sandbox of the server before", "sandbox", id, "error", err)
			}
		}
		m.discardAll(ctx, idle)
	}, nil
}

func (m *Manager) discardAll(ctx context.Context, ids []string) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, sweepers)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := m.Discard(ctx, id); err != nil {
				m.log.WarnContext(ctx, "removing a sandbox of the server before", "sandbox", id, "error", err)
				m.mu.Lock()
				delete(m.ours, id) // a stray from now on
				delete(m.ending, id)
				m.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// awaitSweep waits until no agent of the server before can be at work.
func (m *Manager) awaitSweep(ctx context.Context) error {
	if m.swept == nil {
		return nil
	}
	select {
	case <-m.swept:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// claim makes ids ours, so that they are no strays.
func (m *Manager) claim(ids map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range ids {
		m.ours[id] = true
	}
}

// Strays appear when an engine finishes a call of a server that died after its
// successor has swept. So the successor looks again, soon and then seldom.
const (
	firstStrays = 15 * time.Second
	nextStrays  = 5 * time.Minute
	probeAge    = 10 * time.Minute // no look at an image takes so long
)

// Run removes stray containers of this server, and what the engine has forgotten
// of sandboxes, until ctx ends, which it returns as nil.
func (m *Manager) Run(ctx context.Context) error {
	for wait := firstStrays; ; wait = nextStrays {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		if err := m.removeStrays(ctx); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "looking for stray containers", "error", err)
		}
		if err := m.removeOrphans(ctx, orphanAge); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "looking for what the engine has forgotten", "error", err)
		}
	}
}

// removeStrays removes containers that carry our label and that nobody answers
// for. The list is read first: whatever is made afterwards is not in it.
func (m *Manager) removeStrays(ctx context.Context) error {
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	if err != nil {
		return err
	}
	var errs []error
	m.forgetProbes(containers)
	for _, c := range containers {
		if m.stray(c) {
			m.log.InfoContext(ctx, "removing a stray container", "container", c.Name)
			errs = append(errs, m.cfg.Engine.Remove(ctx, c.ID))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) stray(c engine.Container) bool {
	id := c.Labels[labelSandbox]
	m.mu.Lock()
	defer m.mu.Unlock()
	if id != "" {
		return !m.ours[id]
	}
	// Its age by the engine's clock says nothing once that clock was set.
	first, known := m.probes[c.ID]
	if !known {
		m.probes[c.ID] = time.Now()
		return false
	}
	return time.Since(first) > probeAge
}

// forgetProbes forgets when it first saw looks at images that are over.
func (m *Manager) forgetProbes(containers []engine.Container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.probes, func(id string, _ time.Time) bool {
		return !slices.ContainsFunc(containers, func(c engine.Container) bool { return c.ID == id })
	})
}
