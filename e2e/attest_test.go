package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// weakEngine makes containers that lack what a sandbox was to have.
type weakEngine struct {
	engine.Engine
	weaken func(*engine.ContainerSpec)
}

func (e *weakEngine) Create(ctx context.Context, spec engine.ContainerSpec) (engine.Created, error) {
	if spec.Labels["stromboli.sandbox"] != "" { // not a look at an image
		e.weaken(&spec)
	}
	return e.Engine.Create(ctx, spec)
}

// TestNotEnforced: whatever an engine leaves out of what a sandbox was to have
// is found before an agent starts, and named. The control is the engine that
// leaves out nothing.
func TestNotEnforced(t *testing.T) {
	s := start(t) // for the shim that it installs
	weak := &weakEngine{Engine: suite.engine}
	m, _, info := s.manager(t, weak)
	empty := t.TempDir()
	ownIDs := m.UserNS().Mode == sandbox.UserNSAuto
	volume := s.volumeOf(t, "data", 1000)
	for _, c := range []struct {
		name   string
		weaken func(*engine.ContainerSpec)
		want   string
		limits bool // where the engine enforces limits
		ids    bool // where sandboxes have ids of their own
	}{
		{"nothing", func(*engine.ContainerSpec) {}, "", false, false},
		{"a capability", func(c *engine.ContainerSpec) { c.CapAdd = append(c.CapAdd, "SYS_ADMIN") }, "capabilities [SYS_ADMIN]", false, false},
		{"a writable root", func(c *engine.ContainerSpec) { c.ReadOnlyRoot = false }, "the root file system can be written", false, false},
		{"the host's network", func(c *engine.ContainerSpec) { c.Network = engine.NetworkHost }, "the net namespace is the host's", false, false},
		{"a bridge", func(c *engine.ContainerSpec) { c.Network = engine.NetworkBridge }, "the network has the devices", false, false},
		{"a volume that can be written", func(c *engine.ContainerSpec) { each(c, "/data", func(m *engine.Mount) { m.ReadOnly = false }) }, "/data can be written", false, false},
		{"a volume with programs", func(c *engine.ContainerSpec) { each(c, "/data", func(m *engine.Mount) { m.NoExec = false }) }, "programs in /data can be executed", false, false},
		{"a volume left out", func(c *engine.ContainerSpec) { each(c, "/data", func(m *engine.Mount) { m.Target = "/elsewhere" }) }, "is not what was checked", false, false},
		{"more memory", func(c *engine.ContainerSpec) { c.MemoryBytes *= 2 }, "memory: asked for", true, false},
		{"more CPU", func(c *engine.ContainerSpec) { c.NanoCPUs *= 2 }, "cpus: asked for", true, false},
		{"another weight", func(c *engine.ContainerSpec) { c.CPUShares = 2048 }, "cpu_shares: asked for", true, false},
		{"no limit of processes", func(c *engine.ContainerSpec) { c.PidsLimit = -1 }, "pids: asked for", true, false},
		{"other groups", func(c *engine.ContainerSpec) {
			c.UserNS.GIDs = []engine.IDRange{{Container: 0, Host: 2_140_000_000, Size: 65536}}
		}, "the sandbox's group ids are", false, true},
		{"another home", func(c *engine.ContainerSpec) { each(c, sandbox.HomePath, func(m *engine.Mount) { m.Source = empty }) }, "the engine doesn't see what the server mounts", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.ids && !ownIDs {
				t.Skip(m.UserNS().Why)
			}
			weak.weaken = c.weaken
			plan := policy.Plan{
				Workdir: "/workspace", Image: suite.image, MemoryBytes: 256 << 20, NanoCPUs: 5e8, CPUShares: 512,
				Mounts: []policy.Mount{{Source: volume, Target: "/data", ReadOnly: true, NoExec: true, Field: "podman.volumes[0]"}},
			}
			checked, err := m.Check(s.ctx(), plan)
			if err != nil {
				t.Fatal(err)
			}
			id := stromboli.NewSandboxID()
			box, err := m.Create(s.ctx(), sandbox.Spec{ID: id, RunID: "run-weak", SessionID: uuid.NewString(), Plan: plan, Checked: checked})
			if box != nil {
				defer func() {
					if err := m.Discard(context.WithoutCancel(s.ctx()), id); err != nil {
						t.Error(err)
					}
				}()
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("the control was refused: %v", err)
			case c.want == "":
				checkAttestation(t, box.Attestation, info)
				if want := m.UserNS(); box.Attestation.UserNamespace != want.Mode || box.Attestation.UserNamespaceWhy != want.Why || box.Attestation.Namespaces["user"] != (want.Mode != sandbox.UserNSNone) {
					t.Errorf("user namespace: %+v, want %+v", box.Attestation, want)
				}
			case c.limits && !info.EnforcesLimits:
				if err != nil || len(box.Attestation.Unenforced) == 0 {
					t.Errorf("by the operator's leave: %v", err)
				}
			case !errors.Is(err, stromboli.NotEnforced) || !strings.Contains(fmt.Sprint(err), c.want):
				t.Errorf("%v, want not_enforced: %s", err, c.want)
			}
			if left, err := m.Left(s.ctx()); box == nil && left != 0 || err != nil {
				t.Errorf("%d containers are left, %v", left, err)
			}
		})
	}
}

func each(c *engine.ContainerSpec, target string, change func(*engine.Mount)) {
	for i := range c.Mounts {
		if c.Mounts[i].Target == target {
			change(&c.Mounts[i])
		}
	}
}

func checkAttestation(t *testing.T, a *stromboli.Attestation, info engine.Info) {
	t.Helper()
	if a == nil {
		t.Fatal("there is no attestation")
	}
	if a.Agent.UID != 1000 || len(a.Agent.Capabilities["effective"])+len(a.Agent.Capabilities["permitted"]) != 0 || !a.Agent.NoNewPrivileges || a.Agent.SeccompFilters != 2 ||
		!a.ReadOnly || a.Egress != "filtered" || len(a.Shim.Capabilities["effective"]) != 3 || len(a.Masked) == 0 {
		t.Errorf("%+v", a)
	}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		if !a.Namespaces[kind] {
			t.Errorf("the %s namespace is not its own", kind)
		}
	}
	if info.EnforcesLimits && (a.Limits["memory_bytes"].InForce != 256<<20 || a.Limits["nano_cpus"].InForce != 5e8 || a.Limits["pids"].InForce != 1024) {
		t.Errorf("limits: %+v", a.Limits)
	}
	for _, m := range a.Mounts {
		if m.Target == "/data" && (!m.ReadOnly || m.Inode == 0) {
			t.Errorf("the volume: %+v", m)
		}
	}
}
