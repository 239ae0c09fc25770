package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/archive"
	"github.com/tomblancdev/stromboli/internal/audit"
	"github.com/tomblancdev/stromboli/internal/auth"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/health"
	"github.com/tomblancdev/stromboli/internal/image"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/secret"
	"github.com/tomblancdev/stromboli/internal/store"
	"github.com/tomblancdev/stromboli/internal/telemetry"
	"github.com/tomblancdev/stromboli/internal/tracing"
	"github.com/tomblancdev/stromboli/internal/webhook"
)

type serveCommand struct {
	Demo  bool `help:"Answer with the built-in scripted model instead of Claude; needs no credentials."`
	Drain bool `help:"When asked to stop, wait for active runs to end instead of leaving them to the next server."`
}

// Help is shown after the flags.
func (serveCommand) Help() string {
	return "Settings come from the environment and from the file that --config names, else ./stromboli.yaml, ~/.stromboli/stromboli.yaml or /etc/stromboli/stromboli.yaml; " +
		"see docs/CONFIGURATION.md, and `stromboli config print`."
}

// Run serves until the process is told to stop.
func (c serveCommand) Run(ctx context.Context, p process) error {
	// From here on until the process has gone a hangup ends nothing: not while it
	// starts, and not in its last moments.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	handed, environ, err := inherited(p.environ)
	if err != nil {
		return err
	}
	p.environ = environ
	cfg, err := p.config()
	if err != nil {
		return err
	}
	s := server{cfg: cfg, inherited: handed, source: p.config, hangup: hangup, environ: p.environ, demo: c.Demo, drain: c.Drain, logs: newLogs(cfg.Log, p), ready: func(url string) {
		_, _ = fmt.Fprintln(p.stderr, "stromboli: serving at", url)
	}}
	return s.serve(ctx)
}

// server is one server: its settings, and the parts once they are open.
type server struct {
	cfg     *config.Config
	environ []string
	// source reads the configuration again when hangup says so. Both may be nil.
	source func() (*config.Config, error)
	hangup <-chan os.Signal
	// inherited is a listener that was handed over; nil: the server opens its own.
	inherited net.Listener
	demo      bool
	drain     bool
	logs      *telemetry.Log
	ready     func(url string) // called when requests are being answered
	// ownToken, if set, is an API token of this process's own, beside the
	// configured ones.
	ownToken string

	log     *slog.Logger // of the part "server"
	metrics *telemetry.Metrics
	system  *system

	// The newest configuration that was taken over, as it was read; once parts
	// run, reloads alone touches it.
	loaded      *config.Config
	policies    *policies
	certificate *certificate // nil: no TLS
	reloadFault atomic.Pointer[string]

	dir          *dataDir
	store        *store.Store
	audit        *audit.Log // nil: there is none
	blobs        *blob.Dir
	archive      *archive.Archive
	closeArchive func() error
	sweeper      *retention.Sweeper
	vault        *secret.Vault
	auth         *auth.Auth
	engine       *podman.Client
	engineErr    error // why gc has none
	info         engine.Info
	image        string // of runs that name none
	memory       int64  // that was free when the server started
	egress       *egress.Supervisor
	model        *model
	boxes        *sandbox.Manager
	images       *image.Library
	runner       *runner.Runner
	hooks        *webhook.Sender
	traces       *tracing.Tracer // nil: none
	api          *api.API
	cli          *agentCLI
	shim         string // the sandboxes' first process
	health       *health.Monitor
	recent       *recent
}

// serve opens the parts in the order in which they need each other, answers
// requests until ctx ends, and closes them in the opposite order. Sandboxes
// and egress go on for the next server.
func (s *server) serve(ctx context.Context) (err error) {
	s.log, s.metrics, s.system = s.logs.Part("server"), s.newMetrics(), &system{s: s}
	s.recent = &recent{now: time.Now}
	asRead := *s.cfg
	s.loaded = &asRead
	if s.inherited != nil {
		if err := s.cfg.ListensAt(addressOf(s.inherited.Addr())); err != nil {
			return fmt.Errorf("the socket that was handed over: %w", err)
		}
	}
	if s.certificate, err = openCertificate(s.cfg.TLS, s.log); err != nil {
		return err
	}
	if s.dir, err = openDataDir(s.cfg.DataDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.dir.close()) }()
	if err := s.places(); err != nil {
		return err
	}
	if s.store, err = store.Open(ctx, store.Config{Path: filepath.Join(s.dir.path, databaseFile), KeepIdempotency: s.cfg.Retention.IdempotencyKeys, Committed: s.committed}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }() //nolint:contextcheck // closing is not cut short
	if s.audit, err = openAudit(ctx, s.cfg, s.log); err != nil {
		return err
	}
	if s.audit != nil {
		defer func() { err = errors.Join(err, s.audit.Close()) }()
	}
	defer s.cleanUp(context.WithoutCancel(ctx))
	if err := s.open(ctx); err != nil {
		return err
	}
	defer s.engine.Close()
	defer s.images.Close()
	defer func() { err = errors.Join(err, s.closeArchive(), s.blobs.Close()) }()
	ln, err := s.listen(ctx)
	if err != nil {
		return err
	}
	url := s.urlOf(ln.Addr())
	switch err := s.dir.writeAddress(url); {
	case errors.Is(err, syscall.ENOSPC): // a full disk must not keep the server from its runs
		s.log.WarnContext(ctx, "the server's address can't be recorded for `stromboli run`", "error", err)
	case err != nil:
		return errors.Join(err, ln.Close())
	}
	recordDoing(ctx, s.audit, s.log, actServerStart, stromboli.AuditOK, map[string]string{"version": version, "address": url})
	defer recordDoing(ctx, s.audit, s.log, actServerStop, stromboli.AuditOK, nil)
	return s.loop(ctx, ln, url)
}

// loop runs the long-lived parts. Those below, engine and egress, go on until
// those above have let go of them.
func (s *server) loop(ctx context.Context, ln net.Listener, url string) error {
	below, stopBelow := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBelow()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var lower errgroup.Group
	parts := []func(context.Context) error{s.engine.Run, s.egress.Run}
	if s.traces != nil {
		parts = append(parts, s.traces.Run) // it hears of what the parts above do last
	}
	for _, part := range parts {
		lower.Go(func() error {
			defer stop() // nothing goes on without it
			return part(below)
		})
	}

	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	upper, serving := errgroup.WithContext(serving)
	work, letGo := context.WithCancel(context.WithoutCancel(ctx))
	defer letGo()
	if err := s.runner.Recover(ctx); err != nil {
		stopBelow()
		return errors.Join(err, ln.Close(), ended(lower.Wait()))
	}
	for _, part := range []func(context.Context) error{
		s.sweepEvery, s.serveGC, s.reloads, s.certificate.watch, s.boxes.Run, s.model.watch, s.boxes.Meter, s.measure, s.health.Run, s.store.Watch, s.cli.keep,
	} {
		upper.Go(func() error { return part(serving) })
	}
	upper.Go(func() error { return s.runner.Run(work) })
	upper.Go(func() error { return s.hooks.Run(work) })
	upper.Go(func() error {
		defer letGo()
		return s.api.Serve(serving, ln)
	})
	upper.Go(func() error {
		defer stopServing()
		return s.untilStop(ctx, serving)
	})
	s.ready(url)
	err := upper.Wait()
	stopBelow()
	return errors.Join(ended(err), ended(lower.Wait()))
}

// untilStop returns when the server may stop answering: once told to, and, if it
// is to drain, when its runs have ended. Until then callers can follow them.
func (s *server) untilStop(ctx, serving context.Context) error {
	select {
	case <-ctx.Done():
	case <-serving.Done(): // a part has failed
		return nil
	}
	if !s.drain {
		return nil
	}
	s.log.InfoContext(serving, "waiting for active runs to end")
	return s.runner.Drain(serving)
}

// ended takes what a part returns that was told to stop for no error.
func ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// cleanUp ends the processes that we started, when no sandbox needs them any
// more: a stopped server, or one whose start failed, leaves nothing behind but
// what runs.
func (s *server) cleanUp(ctx context.Context) {
	if s.boxes == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	left, err := s.boxes.Working(ctx)
	if err != nil || left > 0 {
		return
	}
	if !s.cfg.Egress.External {
		if err := egress.NewClient(s.egressDir()).Shutdown(ctx); err != nil {
			s.log.DebugContext(ctx, "ending egress", "error", err)
		}
	}
	if err := s.engine.StopService(ctx); err != nil {
		s.log.DebugContext(ctx, "ending the engine's service", "error", err)
	}
}
