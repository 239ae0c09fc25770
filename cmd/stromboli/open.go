package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/image"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
	"github.com/tomblancdev/stromboli/internal/webhook"
)

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
