package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/health"
	"github.com/tomblancdev/stromboli/internal/setup"
	"github.com/tomblancdev/stromboli/internal/store"
)

// partQueue is the part that tells of others' faults as its reason.
const partQueue = "queue"

// egressPause is how long is waited between two attempts to reach egress.
const egressPause = 100 * time.Millisecond

// newHealth makes what looks at the server's parts, which are open.
func (s *server) newHealth() *health.Monitor {
	return health.New(health.Config{
		Parts: []health.Part{
			{Name: "engine", Look: s.engine.Ping},
			{Name: "store", Look: s.storeFault},
			{Name: "audit", Look: s.auditFault},
			{Name: "egress", Look: s.egressFault},
			{Name: "image", Look: s.imageFault},
			{Name: "disk", Look: s.diskFault},
			{Name: "cli", Look: s.cli.fault},
			{Name: "credentials", Look: s.credentialFault},
			{Name: "sandboxes", Look: s.sandboxFault},
			{Name: partQueue, Look: s.queueFault},
		},
		Changed: s.healthChanged,
	})
}

// healthChanged tells the metrics, the log, and the runs that wait.
func (s *server) healthChanged(before, now health.State) {
	if s.cfg.Metrics.Enabled {
		s.metrics.Component(now.Name, now.Fault == "")
	}
	s.runner.Retry()
	if now.Fault == "" {
		if !before.Known {
			return
		}
		s.log.Info("a part is well again", "component", now.Name)
		return
	}
	args := []any{"component", now.Name, "fault", now.Fault, "runs_start", !now.Blocks}
	if err := s.store.Damage(); err != nil && now.Name == "store" {
		args = append(args, "error", err) // with the file and what to do
	}
	s.log.Warn("a part is not well", args...)
}

// held says why pending runs should wait: none could start.
func (s *server) held() error {
	for _, p := range s.health.Known() {
		if p.Known && p.Blocks && p.Name != partQueue {
			return fmt.Errorf("%s: %s", p.Name, p.Fault)
		}
	}
	return nil
}

// storeFault tells what callers may know: the log has the rest.
func (s *server) storeFault(ctx context.Context) error {
	err := s.store.Check(ctx)
	if errors.Is(err, store.ErrCorrupt) {
		return errors.New("the database is damaged: stop the server and restore a backup (docs/operations.md, Database corrupt)")
	}
	if e, ok := errors.AsType[*stromboli.Error](err); ok {
		return errors.New(e.Message)
	}
	return err
}

// auditFault: what can't be recorded isn't done.
func (s *server) auditFault(context.Context) error {
	if s.audit == nil {
		return nil
	}
	return s.audit.Err()
}

// egressFault doesn't take a process for lost that is just being started again:
// runs wait for it.
func (s *server) egressFault(ctx context.Context) error {
	for {
		_, err := s.egress.Status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			return fmt.Errorf("there is no egress process, and none could be started (the part egress of the log says why): %w", err)
		case <-time.After(egressPause):
		}
	}
}

// imageFault looks for the image of runs that name none; others can start. An
// engine that is down is told of once.
func (s *server) imageFault(ctx context.Context) error {
	there, err := s.engine.ImageExists(ctx, s.image)
	if err != nil || there {
		return nil //nolint:nilerr // the part engine has it
	}
	return impaired(s.image + ", the image of runs that name none, is not in the engine's store (run `stromboli setup --image`, or set STROMBOLI_AGENT_IMAGE)")
}

// diskFault: below the reserve nothing starts; the engine's own store, and
// inodes, may become scarce before.
func (s *server) diskFault(context.Context) error {
	if full, ok := errors.AsType[*stromboli.Error](s.boxes.Room()); ok {
		return errors.New(full.Message)
	}
	if err := failure(setup.CheckDisk(setup.SpaceAt, s.dir.path, s.info.GraphRoot)); err != nil {
		return impaired(err.Error())
	}
	return nil
}

// credentialFault says why no tenant's run would have a credential, or that the
// model refused one. Which tenants there are is nobody else's to know.
func (s *server) credentialFault(context.Context) error {
	common, tenants, terr := describeCredentials(s.cfg, s.environ, s.demo)
	if terr != nil {
		return errTenantsFile
	}
	found := setup.CheckCredentials(common, tenants, nil, time.Now())
	for _, f := range found[1:] {
		if f.Status != setup.Failed {
			return s.recent.refusal()
		}
	}
	if err := failure(setup.CheckCredential(common, time.Now())); err != nil {
		return err
	}
	return s.recent.refusal()
}

// sandboxFault looks for what each sandbox is made of beside image and CLI, and
// at how the last starts went. All are cold starts.
func (s *server) sandboxFault(context.Context) error {
	if !shimWhole(s.shim) {
		if _, err := installShim(s.cfg.SharedDir()); err != nil {
			return err
		}
		s.log.Warn("the sandboxes' first process was missing or not whole, and is there again", "path", s.shim)
	}
	return s.recent.failedStarts()
}

// queueFault tells of runs that wait too long, and of a queue that takes no more.
// Its text has no numbers that change by themselves: each change is logged.
func (s *server) queueFault(ctx context.Context) error {
	load := s.runner.Load()
	full := load.Pending >= s.cfg.QueueMax && (load.Pending > 0 || load.Running >= load.Slots)
	if load.Pending == 0 && !full {
		return nil
	}
	why := "slots are free and no run is claimed: the part runner of the log says why"
	if load.Running >= load.Slots {
		why = fmt.Sprintf("all %d slots are in use (STROMBOLI_RUNS_MAX)", load.Slots)
	}
	if err := s.held(); err != nil {
		why = "no run can start: " + err.Error()
	}
	if full {
		return fmt.Errorf("the queue is full (STROMBOLI_QUEUE_MAX is %d): %s", s.cfg.QueueMax, why)
	}
	oldest, err := s.store.OldestPending(ctx)
	if err != nil || oldest.IsZero() || time.Since(oldest) < s.cfg.QueueStuckAfter {
		return nil //nolint:nilerr // the part store has it
	}
	return impaired(fmt.Sprintf("a run has waited for more than %s: %s", s.cfg.QueueStuckAfter, why))
}

func impaired(text string) error { return &health.Impaired{Err: errors.New(text)} }

// failure is a failed check as an error.
func failure(f setup.Finding) error {
	if f.Status != setup.Failed {
		return nil
	}
	return errors.New(f.Found + " (" + f.Fix + ")")
}
