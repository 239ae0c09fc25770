package enginetest

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Start implements engine.Containers.
func (f *Fake) Start(ctx context.Context, id string) error {
	if err := f.enter(ctx, "Start"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find("start", id)
	if err != nil || c.State == engine.StateRunning {
		return err
	}
	if f.closed {
		return fakeError("start container "+id, engine.ErrUnavailable)
	}
	if len(c.spec.Command) > 0 {
		if _, ok := c.image.files[c.image.resolve(c.spec.Command[0], true)]; !ok {
			return &engine.Error{Op: "start container " + id, Status: 500, Message: c.spec.Command[0] + ": no such file or directory"}
		}
	}

	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	c.kill, c.killed = kill, false
	f.serial++
	c.State, c.PID, c.StartedAt = engine.StateRunning, 1<<22+f.serial, time.Now()
	f.event(c, "start")
	f.running.Add(1)
	go func() {
		defer f.running.Done()
		defer kill()
		code := f.cfg.Program(running, Process{ID: c.ID, Spec: c.spec, Signals: c.signals})
		f.mu.Lock()
		defer f.mu.Unlock()
		if c.killed {
			code = 137
		}
		c.State, c.PID, c.ExitCode, c.FinishedAt, c.kill = engine.StateExited, 0, code, time.Now(), nil
		f.event(c, "died")
	}()
	return nil
}

// Inspect implements engine.Containers.
func (f *Fake) Inspect(ctx context.Context, id string) (engine.Container, error) {
	if err := f.enter(ctx, "Inspect"); err != nil {
		return engine.Container{}, err
	}
	defer f.mu.Unlock()
	c, err := f.find("inspect", id)
	if err != nil {
		return engine.Container{}, err
	}
	return c.Container, nil
}

// Wait implements engine.Containers.
func (f *Fake) Wait(ctx context.Context, id string) (int, error) {
	for {
		if err := f.enter(ctx, "Wait"); err != nil {
			return 0, err
		}
		c, err := f.find("wait for", id)
		if err != nil || c.State == engine.StateExited {
			code := 0
			if err == nil {
				code = c.ExitCode
			}
			f.mu.Unlock()
			return code, err
		}
		wake := f.wake
		f.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
}

// Kill implements engine.Containers.
func (f *Fake) Kill(ctx context.Context, id, signal string) error {
	if err := f.enter(ctx, "Kill"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find("kill", id)
	if err != nil {
		return err
	}
	if c.State != engine.StateRunning {
		return fakeError("kill container "+id, engine.ErrConflict)
	}
	f.signal(c, signal)
	return nil
}

func (f *Fake) signal(c *fakeContainer, name string) {
	name = strings.TrimPrefix(name, "SIG")
	if name == "KILL" {
		c.die()
		return
	}
	select {
	case c.signals <- name:
	default: // as the kernel: a pending signal is pending once
	}
}

// Stop implements engine.Containers.
func (f *Fake) Stop(ctx context.Context, id string, grace time.Duration) error {
	if err := f.enter(ctx, "Stop"); err != nil {
		return err
	}
	c, err := f.find("stop", id)
	if err != nil || c.State != engine.StateRunning {
		f.mu.Unlock()
		return err
	}
	f.signal(c, "TERM")
	f.mu.Unlock()
	patience, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if _, err := f.Wait(patience, id); err == nil || ctx.Err() != nil {
		return err
	}
	f.mu.Lock()
	c.die()
	f.mu.Unlock()
	_, err = f.Wait(ctx, id)
	return err
}

// Remove implements engine.Containers.
func (f *Fake) Remove(ctx context.Context, id string) error {
	if err := f.enter(ctx, "Remove"); err != nil {
		return err
	}
	c, err := f.find("remove", id)
	if err != nil {
		f.mu.Unlock()
		return nil
	}
	c.die()
	running := c.State == engine.StateRunning
	f.mu.Unlock()
	if running {
		if _, err := f.Wait(ctx, c.ID); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.containers[c.ID]; ok {
		delete(f.containers, c.ID)
		f.event(c, "remove")
	}
	return nil
}

// List implements engine.Containers.
func (f *Fake) List(ctx context.Context, labels map[string]string) ([]engine.Container, error) {
	if err := f.enter(ctx, "List"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	var list []engine.Container
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := f.containers[id].Container
		c.InForce = engine.InForce{}
		if engine.HasLabels(c.Labels, labels) {
			list = append(list, c)
		}
	}
	return list, nil
}

// Stats implements engine.Containers.
func (f *Fake) Stats(ctx context.Context, id string) (engine.Stats, error) {
	if err := f.enter(ctx, "Stats"); err != nil {
		return engine.Stats{}, err
	}
	defer f.mu.Unlock()
	c, err := f.find("read stats of", id)
	if err != nil {
		return engine.Stats{}, err
	}
	if c.State != engine.StateRunning {
		return engine.Stats{}, fakeError("read stats of container "+id, engine.ErrConflict)
	}
	return engine.Stats{CPU: time.Millisecond, MemoryBytes: 1 << 20, MemoryLimit: c.spec.MemoryBytes, Pids: 1}, nil
}

// Events implements engine.Engine.
func (f *Fake) Events(ctx context.Context, filter engine.EventFilter) iter.Seq2[engine.Event, error] {
	since := filter.Since
	if since.IsZero() {
		since = time.Now()
	}
	return func(yield func(engine.Event, error) bool) {
		for next := 0; ; {
			if err := f.enter(ctx, "Events"); err != nil {
				yield(engine.Event{}, err)
				return
			}
			fresh, wake, closed := slices.Clone(f.events[next:]), f.wake, f.closed
			next += len(fresh)
			f.mu.Unlock()
			for _, e := range fresh {
				if !e.Time.Before(since) && engine.HasLabels(e.Labels, filter.Labels) && !yield(e, nil) {
					return
				}
			}
			if closed {
				yield(engine.Event{}, fakeError("follow events", engine.ErrUnavailable))
				return
			}
			select {
			case <-wake:
			case <-ctx.Done():
			}
		}
	}
}
