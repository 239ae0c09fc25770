package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/setup"
)

// mendPause is how long is waited after an attempt to fetch the agent CLI again
// that failed.
const mendPause = 15 * time.Second

// agentCLI finds the agent CLI's builds in the cache.
type agentCLI struct {
	cache   string
	environ []string
	log     *slog.Logger
	broken  chan struct{} // one slot: the build for most images is not whole

	mu   sync.Mutex
	last error // of the last attempt to fetch it again
}

func newAgentCLI(cache string, environ []string, log *slog.Logger) *agentCLI {
	return &agentCLI{cache: cache, environ: environ, log: log, broken: make(chan struct{}, 1)}
}

// check makes sure that the build for most images is there.
func (a *agentCLI) check(ctx context.Context) error {
	_, _, err := a.Build(ctx, setup.Glibc)
	return err
}

// fault looks for the build for most images, and has it fetched again where it
// isn't whole.
func (a *agentCLI) fault(context.Context) error {
	err := failure(setup.CheckCLI(a.cache, a.environ))
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.last = nil
		return nil
	}
	select {
	case a.broken <- struct{}{}:
	default:
	}
	if a.last != nil {
		return fmt.Errorf("%w; it could not be fetched, and is tried again: the log says why", err)
	}
	return fmt.Errorf("%w; it is being fetched", err)
}

// keep fetches the build again when it was found not to be whole, until ctx ends.
func (a *agentCLI) keep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.broken:
		}
		err := a.check(ctx)
		a.mu.Lock()
		a.last = err
		a.mu.Unlock()
		if err == nil || ctx.Err() != nil {
			continue
		}
		a.log.WarnContext(ctx, "the agent CLI is not whole and could not be fetched", "error", err, "again_after", mendPause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(mendPause):
		}
	}
}

// Build returns the directory of a build; the musl build is fetched when it is
// first needed.
func (a *agentCLI) Build(ctx context.Context, libc string) (dir, loader string, err error) {
	var step string
	cfg := setup.Config{CacheDir: a.cache, Env: a.environ, Libc: libc, Progress: func(p setup.Progress) {
		if p.Step != step {
			step = p.Step
			a.log.InfoContext(ctx, "fetching what is missing; this may take a minute", "what", p.Step)
		}
	}}
	cli, err := setup.CLI(ctx, cfg)
	if err != nil {
		return "", "", err
	}
	if libc == setup.Musl {
		if loader, err = setup.MuslLoader(ctx, cfg); err != nil {
			return "", "", err
		}
	}
	dir, err = filepath.EvalSymlinks(cli.Path)
	return dir, loader, err
}
