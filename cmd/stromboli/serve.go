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
	"runtime"
	"strconv"
	"strings"
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
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/health"
	"github.com/tomblancdev/stromboli/internal/image"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/secret"
	"github.com/tomblancdev/stromboli/internal/setup"
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

// open makes the parts; none of them runs yet. Settings are judged before the
// engine's service is started.
func (s *server) open(ctx context.Context) error {
	var err error
	if s.policies, err = newPolicies(s.cfg, s.environ, s.log, s.own()...); err != nil {
		return err
	}
	for _, note := range s.cfg.NoEffect() {
		s.log.WarnContext(ctx, note)
	}
	if err := s.openAuth(); err != nil {
		return err
	}
	if s.shim, err = installShim(s.cfg.SharedDir()); err != nil {
		return err
	}
	if s.blobs, err = blob.Open(filepath.Join(s.dir.path, "blobs")); err != nil {
		return err
	}
	if s.archive, s.closeArchive, err = openArchive(s.cfg, s.environ, s.store, s.blobs, s.logs.Part("archive")); err != nil {
		return err
	}
	if s.vault, err = openVault(s.cfg, s.dir, s.store); err != nil {
		return err
	}
	s.image = s.policies.image
	limits := s.policies.limits
	s.memory = availableMemory()
	s.hooks, err = webhook.New(webhook.Config{
		Outbox: s.store, Secrets: s.policies.signing, Allow: limits.Webhooks, Timeout: s.cfg.Webhook.Timeout,
		Attempted: s.metrics.Attempt, Log: s.logs.Part("webhook"),
	})
	if err != nil {
		return err
	}
	log := eventlog.New(archived{watched{s.store, []func(string, []stromboli.Event){s.metrics.Events, s.recent.Events}}, s.archive})
	if s.traces, err = newTracing(s.cfg, log, s.logs.Part("server")); err != nil {
		return err
	}
	if err := s.openEgress(); err != nil {
		return err
	}
	s.engine, err = podman.Open(ctx, podman.OpenConfig{
		Host: s.cfg.ContainerHost, Dir: filepath.Join(s.dir.path, "engine"), AllowOwnService: true, Environ: s.environ,
		Log: s.logs.Part("engine"), Called: s.called,
	})
	if err != nil {
		return err
	}
	if s.info, err = s.engine.Info(ctx); err != nil {
		return err
	}
	for _, note := range s.info.Notes {
		s.log.Warn("engine", "note", note)
	}
	limits.Protected = withoutLinks(append(limits.Protected, s.engine.Socket()))
	s.cli = newAgentCLI(s.cfg.CacheDir, s.environ, s.log)
	confined := confinement(s.cfg, s.engine, s.info)
	s.boxes = sandbox.New(sandbox.Config{
		Engine: s.engine, Info: s.info, DataDir: s.dir.path, Sessions: s.cfg.SessionsDir(), Shared: s.cfg.SharedDir(),
		HostPath: s.cfg.HostPath, Container: confined.Container,
		Instance: instance(s.cfg.HostPath(s.cfg.SharedDir())), Shim: s.shim, CLI: s.cli,
		Egress: doors{s.egress}, Volumes: allowedVolumes(s.cfg), Protected: limits.Protected, KeepWorkdir: !s.cfg.Agent.WorkdirAutoCreate,
		Timezone: s.policies.zone, Zoneinfo: s.policies.zoneData,
		UserNS: confined.UserNS, SameMounts: confined.SameMounts, Reclaim: reclaim(s.engine, s.info, confined),
		Off: switchedOff(s.cfg.Sandbox), Pids: noneIsNegative(s.cfg.Sandbox.PidsLimit), OpenFiles: s.cfg.Sandbox.OpenFiles,
		OrphanTimeout: s.cfg.OrphanTimeout, AllowUnenforced: s.cfg.Resources.AllowUnenforced,
		DiskLimit: s.policies.diskLimit, DiskReserve: s.policies.diskReserve, Logger: s.logs.Part("sandbox"),
	})
	if err := s.cli.check(ctx); err != nil {
		return err
	}
	if err := s.fit(ctx); err != nil {
		return err
	}
	s.images = image.New(image.Config{
		Engine: s.engine, Facts: s.boxes, Patterns: limits.ImagePatterns, Insecure: s.cfg.Agent.InsecureRegistries,
		AuthFiles: config.RegistryAuthFiles(s.environ, os.Geteuid()), PullTimeout: s.cfg.Agent.PullTimeout, Room: s.boxes.Room, Log: s.logs.Part("image"),
	})
	rc := runner.Config{
		Store: s.store, Log: log, Sandboxes: s.boxes, Images: s.images, Blobs: s.blobs, Model: s.model, Connections: s.egress, Secrets: s.vault, Policy: limits,
		Owner: owner(), MaxRunning: maxRunning(s.cfg, limits, s.memory), MaxQueued: s.cfg.QueueMax,
		BackgroundWait: s.cfg.Runs.BackgroundWait, Timezone: s.policies.zone, RootHooks: s.cfg.Agent.RootHooks, Logger: s.logs.Part("runner"),
		Keep: s.cfg.Sandbox.Keep, KeepMax: s.cfg.Sandbox.KeepMax,
		Connected: s.metrics.Connected, Used: s.metrics.Used, Held: s.held,
	}
	if s.traces != nil {
		rc.Tracer = s.traces
	}
	rc.Archives = s.archive
	s.runner = runner.New(rc)
	s.sweeper = s.newSweeper()
	s.health = s.newHealth()
	ac := api.Config{
		Runs: s.runner, Events: log, Sessions: s.runner, Secrets: keptSecrets{s.vault, s.runner.SecretChanged}, Images: s.images, Webhooks: s.hooks, System: s.system, Log: s.logs.Part("api"), Render: claude.AssistantText, Visible: claude.Visible,
		Metrics: s.metricsHandler(), Served: s.served, NoAccessLog: !s.cfg.Log.Access,
		Access: s.access(), Auth: s.auth, RateLimit: s.policies.rate,
		TLS: s.certificate.config(), AllowedHosts: s.cfg.Server.AllowedHosts, MaxBody: s.cfg.Server.MaxBody,
		MaxConnections: s.maxConnections(), MaxPerAddress: s.cfg.Server.MaxPerAddress,
	}
	if s.audit != nil {
		ac.Audit = s.audit
	}
	if s.traces != nil {
		ac.Tracer = s.traces
	}
	s.api, err = api.New(ac)
	return err
}

// fit refuses a host on which runs could only fail, and says what is missing
// for now.
func (s *server) fit(ctx context.Context) error {
	up, err := checkup(s.cfg, s.environ, s.demo)
	if err != nil {
		return err
	}
	ids := s.boxes.UserNS()
	up.UserNS, up.UserNSWhy = ids.Mode, ids.Why
	up.Engine, up.Socket, up.Outside = s.engine, s.engine.Socket(), outside(s.cfg, s.engine)
	found := setup.Examine(ctx, up)
	if bad := setup.Refusals(found); len(bad) > 0 {
		return errUnfit(bad)
	}
	for _, f := range found {
		if f.Status == setup.Failed || f.Status == setup.Warning {
			s.log.Warn("host", "check", f.Check, "found", f.Found, "fix", f.Fix)
		}
	}
	return nil
}

func (s *server) openEgress() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	dir := s.egressDir()
	command := []string{self, "egress", "--dir", dir}
	if s.cfg.Egress.External {
		command = nil
	}
	s.egress = egress.NewSupervisor(egress.SupervisorConfig{
		Dir: dir, Command: command, Env: egressEnv(s.environ),
		Build: build(self), Log: s.logs.Part("egress"),
	})
	s.model, err = newModel(s.cfg, s.environ, s.demo, renewing{s.egress, s.recent.renewed}, s.logs.Part("model"))
	return err
}

func (s *server) egressDir() string { return filepath.Join(s.cfg.SharedDir(), "egress") }

// egressEnv is what the egress process gets of our environment: no secrets.
func egressEnv(environ []string) []string {
	var out []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ":
			out = append(out, kv)
		}
	}
	return out
}

// instance names this server's containers: several servers, each with
// directories of its own on the engine's host, may share one engine.
func instance(hostDir string) string {
	return strconv.FormatUint(fnv64(hostDir), 36)
}

func owner() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return host + "/" + strconv.Itoa(os.Getpid()) + "/" + strconv.FormatInt(time.Now().UnixMilli(), 36)
}

// maxRunning is how many runs may be active at once: what memory allows, and
// at most four per CPU.
func maxRunning(cfg *config.Config, limits policy.Config, free int64) int {
	if cfg.Runs.Max > 0 {
		return cfg.Runs.Max
	}
	n := 4 * runtime.NumCPU()
	if free > 0 && limits.Memory > 0 {
		n = min(n, int(free/limits.Memory))
	}
	return max(n, 1)
}
