package main

import (
	"bufio"
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// checkTime bounds one look at a part for health.
const checkTime = 3 * time.Second

// capabilities are what this server can do beyond the contract, for GET
// /version.
func capabilities() []string {
	return []string{
		"events", "idempotency", "stream_resume", "run_stream_post", "egress_proxy", "network_policy", "egress_records", "attestation", "secrets", "images", "survives_restart",
		"sessions", "session_import", "session_continue", "session_fork", "session_alias", "no_persistence", "env", "background_wait", "content", "webhooks", "hooks", "bindings",
	}
}

// unsupported names ways to the model that other servers of this API may have.
func unsupported() []string { return []string{"bedrock", "vertex"} }

// system tells of the server's parts.
type system struct {
	s *server

	looks singleflight.Group
	last  atomic.Pointer[look] // the newest that found all well
}

// look is what was found, and when it was begun.
type look struct {
	parts []api.Component
	at    time.Time
}

// lookAgain is how long parts that were well are taken to be so: however many
// ask for the server's health, the engine is asked four times a second.
const lookAgain = 250 * time.Millisecond

// Health tells of each part, as it was a quarter of a second ago at most. Who asks
// while somebody looks gets what that one finds; a fault is looked at again.
func (y *system) Health(ctx context.Context) []api.Component {
	// A reload that failed is shown and keeps no run from starting.
	return append(slices.Clip(y.parts(ctx)), api.Component{Name: "configuration", Error: y.s.configFault()})
}

func (y *system) parts(ctx context.Context) []api.Component {
	if l := y.last.Load(); l != nil && time.Since(l.at) < lookAgain {
		return l.parts
	}
	v, _, _ := y.looks.Do("", func() (any, error) {
		l := &look{at: time.Now(), parts: y.look(context.WithoutCancel(ctx))}
		if !slices.ContainsFunc(l.parts, func(c api.Component) bool { return c.Error != "" }) {
			y.last.Store(l)
		}
		return l.parts, nil
	})
	return v.([]api.Component)
}

// look looks at each part.
func (y *system) look(ctx context.Context) []api.Component {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	parts := []struct {
		name  string
		check func(context.Context) error
	}{
		{"engine", y.s.engine.Ping},
		{"store", y.storeAnswers},
		{"audit", func(context.Context) error {
			if y.s.audit == nil {
				return nil
			}
			return y.s.audit.Err()
		}},
		{"egress", func(ctx context.Context) error {
			_, err := y.s.egress.Status(ctx)
			return err
		}},
		{"image", y.imageThere},
		{archiveComponent, y.archiveAnswers},
		{"disk", func(context.Context) error {
			if full, ok := errors.AsType[*stromboli.Error](y.s.boxes.Room()); ok {
				return errors.New(full.Message)
			}
			return failure(setup.CheckDisk(setup.SpaceAt, y.s.dir.path, y.s.info.GraphRoot))
		}},
	}
	out := make([]api.Component, 0, len(parts)+2)
	for _, p := range parts {
		c := api.Component{Name: p.name}
		if err := p.check(ctx); err != nil {
			c.Error = err.Error()
		}
		out = append(out, c)
	}
	return append(out, api.Component{Name: "claude", Error: y.credentialFault()})
}

// credentialFault says why no tenant's run would have a credential; empty: some
// would. Which tenants there are is nobody else's to know.
func (y *system) credentialFault() string {
	common, tenants, terr := describeCredentials(y.s.cfg, y.s.environ, y.s.demo)
	if terr != nil {
		return errTenantsFile.Error()
	}
	found := setup.CheckCredentials(common, tenants, nil, time.Now())
	for _, f := range found[1:] {
		if f.Status != setup.Failed {
			return ""
		}
	}
	if err := failure(setup.CheckCredential(common, time.Now())); err != nil {
		return err.Error()
	}
	return ""
}

// failure is a failed check as an error.
func failure(f setup.Finding) error {
	if f.Status != setup.Failed {
		return nil
	}
	return errors.New(f.Found + " (" + f.Fix + ")")
}

// imageThere looks for the image of runs that name none. An engine that is
// down is told of once.
func (y *system) imageThere(ctx context.Context) error {
	there, err := y.s.engine.ImageExists(ctx, y.s.image)
	if err != nil || there {
		return nil //nolint:nilerr // the component engine has it
	}
	return errors.New(y.s.image + " is not in the engine's store (run `stromboli setup --image`, or set STROMBOLI_AGENT_IMAGE)")
}

func (y *system) storeAnswers(ctx context.Context) error {
	_, _, err := y.s.store.ListRuns(ctx, stromboli.RunFilter{Tenant: stromboli.DefaultTenant, Limit: 1})
	return err
}

// Ready lists why no run could start.
func (y *system) Ready(ctx context.Context) []string {
	var reasons []string
	for _, c := range y.parts(ctx) {
		if c.Error != "" && c.Name != archiveComponent {
			reasons = append(reasons, c.Name+": "+c.Error)
		}
	}
	return reasons
}

// Version describes the build and what it works with.
func (y *system) Version(context.Context) api.Version {
	return api.Version{
		Version: version, Commit: commit, Capabilities: capabilities(), Unsupported: unsupported(),
		ClaudeCLI: setup.CLIVersion, Engine: y.s.info.Name + " " + y.s.info.Version,
	}
}

// ClaudeStatus describes the credential for the model of the principal's tenant.
func (y *system) ClaudeStatus(_ context.Context, p stromboli.Principal) api.ClaudeStatus {
	return y.s.model.status(p.Tenant)
}

// doors adapts the egress supervisor to what sandboxes need of it.
type doors struct{ supervisor *egress.Supervisor }

// Add opens a sandbox's socket.
func (d doors) Add(ctx context.Context, door sandbox.Door) error {
	s := egress.Sandbox{ID: door.ID, RunID: door.RunID, Tenant: door.Reach.Tenant, Socket: door.Socket, Token: door.Token, Network: door.Reach.Network}
	for _, b := range door.Reach.Bindings {
		s.Bindings = append(s.Bindings, egress.Binding{To: b.To, Header: b.Header, Value: b.Value, Fault: b.Fault})
	}
	if len(s.Bindings) > 0 {
		s.Identity = egress.Identity{Certificate: door.Identity.Certificate, Key: door.Identity.Key}
	}
	if door.Peer.Not {
		s.NotUID, s.HasNotUID = door.Peer.UID, true
	} else {
		s.PeerUID, s.HasPeerUID = door.Peer.UID, true
	}
	return d.supervisor.Add(ctx, s)
}

// Remove closes it.
func (d doors) Remove(ctx context.Context, id string) error { return d.supervisor.Remove(ctx, id) }

// agentCLI finds the agent CLI's builds in the cache.
type agentCLI struct {
	cache   string
	environ []string
	log     *slog.Logger
}

// check makes sure that the build for most images is there.
func (a *agentCLI) check(ctx context.Context) error {
	_, _, err := a.Build(ctx, setup.Glibc)
	return err
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

func fnv64(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // a hash never fails to write
	return h.Sum64()
}

// availableMemory is what the kernel says could be used without swapping, in
// bytes; 0 when it doesn't say.
func availableMemory() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
