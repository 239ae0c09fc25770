package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/audit"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
	"github.com/tomblancdev/stromboli/internal/store"
)

// forgetDeliveries bounds what one transaction deletes: each delivery may hold a
// body of a megabyte.
const forgetDeliveries = 50

// sweeps are the parts of a server that keep things.
type sweeps struct {
	cfg       *config.Config
	environ   []string
	store     *store.Store
	archive   *archive.Archive
	audit     *audit.Log // nil: there is none
	runner    *runner.Runner
	image     string // of runs that name none
	measure   func(ctx context.Context, dir string) (int64, error)
	engine    engine.Engine
	engineErr error // why there is none
	room      func() error
}

// kinds is the table of docs/retention.md, in the order in which it is swept: what
// belongs to a thing before the thing.
func (s *sweeps) kinds() []retention.Kind {
	r := s.cfg.Retention
	const prefix = "STROMBOLI_RETENTION_"
	return []retention.Kind{
		{Name: "idempotency_keys", Setting: prefix + "IDEMPOTENCY_KEYS", Age: r.IdempotencyKeys, Sweep: s.sweepKeys},
		{Name: "logins", Sweep: s.sweepLogins},
		{Name: "deliveries", Setting: prefix + "DELIVERIES", Age: r.Deliveries, Sweep: s.sweepDeliveries},
		{Name: "runs", Setting: prefix + "RUNS", Age: r.Runs, Sweep: s.sweepRuns},
		{Name: "archives", Setting: prefix + "ARCHIVES", Age: r.Archives, Sweep: s.sweepArchives},
		{Name: "events", Setting: prefix + "EVENTS", Age: r.Events, Sweep: s.sweepEvents},
		{Name: "sessions", Setting: prefix + "SESSIONS", Age: r.Sessions, Sweep: s.sweepSessions},
		{Name: "audit", Setting: prefix + "AUDIT", Age: r.Audit, Sweep: s.sweepAudit},
		{Name: "cli_versions", Setting: prefix + "CLI_VERSIONS", Age: r.CLIVersions, Sweep: s.sweepCLIs},
		{Name: "images", Setting: prefix + "IMAGES", Age: r.Images, Sweep: s.sweepImages},
	}
}

// repeat deletes batches until there are no more.
func repeat(some func() (int, error)) (retention.Swept, error) {
	var swept retention.Swept
	for {
		n, err := some()
		swept.Count += int64(n)
		if err != nil || n == 0 {
			return swept, err
		}
	}
}

func (s *sweeps) sweepKeys(ctx context.Context, _ time.Time, dry bool) (retention.Swept, error) {
	if dry {
		keys, _, err := s.store.Expired(ctx)
		return retention.Swept{Count: keys}, err
	}
	return repeat(func() (int, error) { return s.store.DeleteExpiredIdempotency(ctx) })
}

func (s *sweeps) sweepLogins(ctx context.Context, _ time.Time, dry bool) (retention.Swept, error) {
	if dry {
		_, logins, err := s.store.Expired(ctx)
		return retention.Swept{Count: logins}, err
	}
	return repeat(func() (int, error) { return s.store.DeleteExpiredGrants(ctx) })
}

func (s *sweeps) sweepDeliveries(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	if dry {
		n, err := s.store.FinishedDeliveries(ctx, before)
		return retention.Swept{Count: n}, err
	}
	return repeat(func() (int, error) { return s.store.DeleteFinishedDeliveries(ctx, before, forgetDeliveries) })
}

// runList is one of the store's lists of finished runs.
type runList func(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error)

func eachRun(ctx context.Context, list runList, before time.Time, dry bool, do func(context.Context, stromboli.FinishedRun) (int64, error)) (retention.Swept, error) {
	return retention.Each(ctx,
		func(ctx context.Context, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error) {
			return list(ctx, before, after, limit)
		},
		func(ctx context.Context, run stromboli.FinishedRun) (int64, bool, error) {
			if dry {
				return run.ArchiveBytes, true, nil
			}
			n, err := do(ctx, run)
			return n, err == nil, err
		})
}

func (s *sweeps) sweepRuns(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	return eachRun(ctx, s.store.FinishedRuns, before, dry, func(ctx context.Context, run stromboli.FinishedRun) (int64, error) {
		return run.ArchiveBytes, s.archive.DeleteRun(ctx, run.ID)
	})
}

func (s *sweeps) sweepArchives(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	return eachRun(ctx, s.store.RunsWithArchive, before, dry, func(ctx context.Context, run stromboli.FinishedRun) (int64, error) {
		return run.ArchiveBytes, s.archive.Drop(ctx, run.ID)
	})
}

func (s *sweeps) sweepEvents(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	return eachRun(ctx, s.store.RunsToArchive, before, dry, func(ctx context.Context, run stromboli.FinishedRun) (int64, error) {
		// Archives take more space before the rows' is free: not what is kept for runs.
		if err := s.room(); err != nil && s.cfg.Archive.URL == "" {
			return 0, err
		}
		return s.archive.Move(ctx, run.ID)
	})
}

// sessionBatch is how many sessions are looked at for one sweep's page.
const sessionBatch = 200

func (s *sweeps) sweepSessions(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	list := func(ctx context.Context, after stromboli.Session, limit int) ([]stromboli.Session, error) {
		return s.store.IdleSessions(ctx, before, after, min(limit, sessionBatch))
	}
	return retention.Each(ctx, list, func(ctx context.Context, session stromboli.Session) (int64, bool, error) {
		size := s.sizeOf(ctx, session.ID)
		if dry {
			return size, true, nil
		}
		gone, err := s.runner.DeleteIdleSession(ctx, session.ID, before)
		return size, gone, err
	})
}

func (s *sweeps) sweepAudit(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	if s.audit == nil {
		return retention.Swept{}, nil
	}
	var n int
	var err error
	if dry {
		n, err = s.audit.Prunable(before)
	} else {
		n, err = s.audit.Prune(ctx, before)
	}
	return retention.Swept{Count: int64(n)}, err
}

// measureTime bounds the measurement of a session, which goes slowly in order to
// disturb nobody.
const measureTime = 2 * time.Second

// sizeOf is what a session takes of the disk; 0: that isn't known.
func (s *sweeps) sizeOf(ctx context.Context, session string) int64 {
	ctx, cancel := context.WithTimeout(ctx, measureTime)
	defer cancel()
	size, err := s.measure(ctx, filepath.Join(s.cfg.SessionsDir(), session))
	if err != nil {
		return 0
	}
	return size
}

func (s *sweeps) setupConfig() setup.Config {
	return setup.Config{CacheDir: s.cfg.CacheDir, Env: s.environ}
}

func (s *sweeps) sweepCLIs(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	if !dry {
		if err := setup.ClearCLIs(s.setupConfig()); err != nil {
			return retention.Swept{}, err
		}
	}
	old, err := setup.OldCLIs(s.setupConfig())
	if err != nil {
		return retention.Swept{}, err
	}
	old = slices.DeleteFunc(old, func(k setup.Kept) bool { return !k.Used.Before(before) })
	if len(old) == 0 {
		return retention.Swept{}, nil
	}
	mounted, err := s.mounted(ctx)
	if err != nil {
		return retention.Swept{}, err
	}
	var swept retention.Swept
	for _, k := range old {
		// By its last two names: what is before them may differ on the engine's host.
		end := "/cli/" + filepath.Base(k.Name)
		if slices.ContainsFunc(mounted, func(path string) bool { return strings.HasSuffix(path, end) || strings.Contains(path, end+"/") }) {
			continue
		}
		gone := true
		if !dry {
			gone, err = setup.RemoveCLI(ctx, k)
		}
		if err != nil {
			return swept, err
		}
		if gone {
			swept.Count++
			swept.Bytes += k.Bytes
		}
	}
	return swept, nil
}

// mounted are the paths that any container of the engine mounts, whoever made it.
func (s *sweeps) mounted(ctx context.Context) ([]string, error) {
	if s.engineErr != nil {
		return nil, s.engineErr
	}
	containers, err := s.engine.List(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("which containers mount what: %w", err)
	}
	var paths []string
	for _, c := range containers {
		seen, err := s.engine.Inspect(ctx, c.ID)
		if errors.Is(err, engine.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("which containers mount what: %w", err)
		}
		for _, m := range seen.InForce.Mounts {
			paths = append(paths, m.Source)
		}
	}
	return paths, nil
}

func (s *sweeps) sweepImages(ctx context.Context, before time.Time, dry bool) (retention.Swept, error) {
	if s.engineErr != nil {
		return retention.Swept{}, s.engineErr
	}
	images, err := s.engine.ImageList(ctx)
	if err != nil {
		return retention.Swept{}, err
	}
	needed, used, err := s.neededImages(ctx)
	if err != nil {
		return retention.Swept{}, err
	}
	var swept retention.Swept
	for _, img := range images {
		for _, name := range img.Names {
			old, ok, err := setup.OldImage(s.setupConfig(), name)
			if err != nil {
				return swept, err
			}
			if !ok || needed[name] || used[img.ID] || !old.Used.Before(before) {
				continue
			}
			if !dry {
				switch err := s.engine.ImageRemove(ctx, name); {
				case errors.Is(err, engine.ErrConflict): // a container has begun to use it
					continue
				case err != nil:
					return swept, err
				}
				if err := setup.ForgetImage(s.setupConfig(), name); err != nil {
					return swept, err
				}
			}
			swept.Count++
			if len(img.Names) == 1 {
				swept.Bytes += img.Bytes
			}
		}
	}
	return swept, nil
}

// neededImages are, by name, those of runs that name none and of runs that have not
// ended, and by id those of containers, whoever made them.
func (s *sweeps) neededImages(ctx context.Context) (names, ids map[string]bool, err error) {
	runs, err := s.store.ActiveRuns(ctx)
	if err != nil {
		return nil, nil, err
	}
	names, ids = map[string]bool{s.image: true}, map[string]bool{}
	for _, run := range runs {
		names[run.Spec.Podman.Image] = true
	}
	containers, err := s.engine.List(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("which containers use what: %w", err)
	}
	for _, c := range containers {
		names[c.Image], ids[c.ImageID] = true, true
	}
	return names, ids, nil
}

// sweepEvery notes what of the cache is in use, and sweeps, until ctx ends.
func (s *server) sweepEvery(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Jobs.CleanupInterval)
	defer tick.Stop()
	for {
		if err := setup.Use(setup.Config{CacheDir: s.cfg.CacheDir, Env: s.environ}); err != nil {
			s.log.WarnContext(ctx, "noting which agent CLI is in use", "error", err)
		}
		if _, err := s.sweeper.Sweep(ctx, false); err != nil {
			return nil // ctx has ended
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// newSweeper makes the sweeper of a server whose parts are open.
func (s *server) newSweeper() *retention.Sweeper {
	parts := &sweeps{
		cfg: s.cfg, environ: s.environ, store: s.store, archive: s.archive, audit: s.audit, runner: s.runner, image: s.image, measure: sandbox.MeasureDir,
		engine: s.engine, engineErr: s.engineErr, room: s.boxes.Room,
	}
	return retention.New(parts.kinds(), s.logs.Part("retention"))
}
