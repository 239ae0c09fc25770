package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Left counts the containers of this server.
func (m *Manager) Left(ctx context.Context) (int, error) {
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	return len(containers), err
}

// Sweep discards every sandbox of this server that keep doesn't name: what a
// server's death left half-made or half-removed.
func (m *Manager) Sweep(ctx context.Context, keep map[string]bool) error {
	left := make(map[string]bool)
	containers, err := m.cfg.Engine.List(ctx, map[string]string{labelInstance: m.cfg.Instance})
	if err != nil {
		return err
	}
	for _, c := range containers {
		if id := c.Labels[labelSandbox]; id != "" {
			left[id] = true
		} else if err := m.cfg.Engine.Remove(ctx, c.ID); err != nil { // an image probe
			m.log.WarnContext(ctx, "removing a container of the server before", "container", c.Name, "error", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(m.cfg.DataDir, "sb"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		left[e.Name()] = true
	}
	m.claim(keep)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for id := range left {
		if keep[id] {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := m.Discard(ctx, id); err != nil {
				m.log.WarnContext(ctx, "removing a sandbox of the server before", "sandbox", id, "error", err)
			}
		})
	}
	wg.Wait()
	return nil
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

// Run removes stray containers of this server until ctx ends, which it returns
// as nil.
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
	if id == "" {
		return time.Since(c.Created) > probeAge
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.ours[id]
}
