package main

import (
	"bufio"
	"context"
	"hash/fnv"
	"os"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
)

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

// system tells of the server and its parts.
type system struct{ s *server }

// Health tells of each part, soon, whatever the parts do.
func (y *system) Health(ctx context.Context) []api.Component {
	states := y.s.health.Ask(ctx)
	out := make([]api.Component, 0, len(states)+2)
	for _, p := range states {
		out = append(out, api.Component{Name: p.Name, Error: p.Fault})
	}
	return append(out, y.s.remembered()...)
}

// remembered are the parts that remember their faults themselves. None of them
// keeps a run from starting.
func (s *server) remembered() []api.Component {
	return []api.Component{
		{Name: archiveComponent, Error: s.archiveFault()},
		{Name: "configuration", Error: s.configFault()},
	}
}

// Ready lists why no run could start.
func (y *system) Ready(ctx context.Context) []string {
	var reasons []string
	for _, p := range y.s.health.Ask(ctx) {
		if p.Blocks {
			reasons = append(reasons, p.Name+": "+p.Fault)
		}
	}
	if y.s.runner.Load().Draining {
		reasons = append(reasons, "the server is about to stop: it waits for its runs to end and takes no new ones")
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
