package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// Spec is a sandbox to be made.
type Spec struct {
	ID        string // chosen by the caller, who has recorded it durably
	RunID     string
	SessionID string
	// SessionUID and SessionGID own the session's directories since its last
	// run; zero before the first.
	SessionUID, SessionGID int
	Plan                   policy.Plan
	Checked                Plan // what Check made of it, moments ago
	Reach                  Reach
	// WritableRoot: what the sandbox's root file system holds may be changed, by
	// hooks. RootHooks: hooks may run as the sandbox's root; whether they can, the
	// sandbox's own RootHooks says.
	WritableRoot, RootHooks bool
	// EngineSecrets are names of secrets that the engine keeps, without repetition.
	// Their files are shim.SecretFile of their place here.
	EngineSecrets []string
	secrets       []engine.SecretMount // that Create made of them
	// Ephemeral: the session's directories are the sandbox's and go with it.
	Ephemeral bool
	// CopyFrom, if set, is a session whose directories are copied to make this
	// one's, in place of whatever is there. Copied is called when the copy is
	// complete and on the disk, with the number of things that could not be read.
	CopyFrom string
	Copied   func(h Home, unread int) error
	// BeforeStart, if set, is called when the session's directories exist and
	// before any process of the sandbox does.
	BeforeStart func(Home) error
}

// cleanupTime bounds the removal of a sandbox that could not be made.
const cleanupTime = 30 * time.Second

// Create makes a sandbox and returns when its shim has said hello. On an error
// nothing is left behind.
func (m *Manager) Create(ctx context.Context, s Spec) (_ *Sandbox, err error) {
	checked := s.Checked
	if err := m.awaitSweep(ctx); err != nil {
		return nil, err
	}
	m.claim(map[string]bool{s.ID: true})
	// What is half-made is removed whatever becomes of the caller.
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
			defer cancel()
			if cerr := m.Discard(clean, s.ID); cerr != nil {
				m.log.WarnContext(clean, "removing a sandbox that could not be made", "sandbox", s.ID, "error", cerr)
			}
		}
	}()
	rec := m.record(s, checked)
	if err := m.giveIDs(&rec); err != nil {
		return nil, err
	}
	if s.CopyFrom != "" {
		unread, err := m.copySession(ctx, s)
		if err != nil {
			return nil, storage(err)
		}
		if err := s.Copied(m.homeOf(rec), unread); err != nil {
			return nil, err
		}
		rec.CreatedAt = time.Now().UTC() // the run's time doesn't count the copy
	}
	begun, err := m.starting.take(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			begun()
		}
	}()
	created, err := m.creating.take(ctx)
	if err != nil {
		return nil, err
	}
	defer created()
	if err := m.directories(ctx, s, &rec); err != nil {
		return nil, storage(err)
	}
	if s.BeforeStart != nil {
		if err := s.BeforeStart(m.homeOf(rec)); err != nil {
			return nil, storage(err)
		}
	}
	mounts := m.agentMounts(rec, checked)
	if err := m.stage(&rec, mounts); err != nil {
		return nil, err
	}
	rec.RootHooks = m.rootHooks(s, rec)
	box, err := m.listen(rec) //nolint:contextcheck // it is served until it is closed
	if err != nil {
		return nil, storage(err)
	}
	if s.secrets, err = m.engineSecrets(ctx, s.EngineSecrets); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := m.startContainer(ctx, s, box, checked, mounts); err != nil {
		return nil, err
	}
	if err := m.bringUp(ctx, s, box); err != nil {
		return nil, err
	}
	box.EngineTime = time.Since(begin)
	box.begun = begun
	time.AfterFunc(settleTime, begun)
	return box, nil
}

// rootHooks reports whether hooks may run as the sandbox's root: it must not be
// the host's, or reach nothing of the host's. With a rootless engine it is one of
// the user's subordinate ids, and what it leaves this server must be able to
// remove.
func (m *Manager) rootHooks(s Spec, rec record) bool {
	if m.cfg.Info.Rootless {
		return s.RootHooks && m.cfg.Reclaim != nil
	}
	return s.RootHooks && (rec.UserNS == UserNSAuto || len(s.Checked.mounts) == 0)
}

// bringUp makes a sandbox whose container was started ready for its agent, and
// finds out what is in force.
func (m *Manager) bringUp(ctx context.Context, s Spec, box *Sandbox) error {
	if err := m.unstage(s.ID); err != nil { // Discard tries again
		m.log.WarnContext(ctx, "taking a sandbox's mounts away from the host", "sandbox", s.ID, "error", err)
	}
	var err error
	if box.caller, err = m.caller(ctx, box.record); err != nil {
		return engineError(err)
	}
	if err := m.openEgress(ctx, box.record, box.caller, s.Reach); err != nil {
		return fmt.Errorf("giving the sandbox its way out: %w", err)
	}
	ready, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	hello, err := box.Peer.Ready(ready)
	if err != nil {
		return fmt.Errorf("waiting for the sandbox's shim: %w", err)
	}
	box.BootID = hello.BootID
	if err := m.writeRecord(box.record); err != nil {
		return storage(err)
	}
	if err := m.attest(ctx, s, box, s.Checked); err != nil {
		return err
	}
	return m.makeWorkdir(ctx, box, s.Checked)
}

func (m *Manager) startContainer(ctx context.Context, s Spec, box *Sandbox, checked Plan, mounts []engine.Mount) error {
	made, own, err := m.made(ctx, s, box.record)
	if err != nil {
		return err
	}
	box.Made = made
	if err := ctx.Err(); err != nil {
		return err
	}
	// Not cut short by a cancellation: the engine would go on making the
	// container, and its removal, coming too early, would find none.
	created, err := m.cfg.Engine.Create(context.WithoutCancel(ctx), m.containerSpec(s, box.record, checked, append(own, mounts...)))
	if err != nil {
		return m.missingSource(checked, err)
	}
	for _, w := range created.Warnings {
		m.log.WarnContext(ctx, "the engine warns", "sandbox", s.ID, "warning", w)
	}
	if err := m.cfg.Engine.Start(ctx, created.ID); err != nil {
		return m.missingSource(checked, err)
	}
	box.started.Store(true)
	return nil
}

// made is what a container is made from, as far as it can't be changed later:
// with the sources of its mounts, whatever stands for them while it is started,
// and without what is only one run's. own are the server's own mounts.
func (m *Manager) made(ctx context.Context, s Spec, rec record) (spec engine.ContainerSpec, own []engine.Mount, err error) {
	libc := "glibc"
	if !s.Checked.facts.Glibc {
		libc = "musl"
	}
	cli, loader, err := m.cfg.CLI.Build(ctx, libc)
	if err != nil {
		return spec, nil, fmt.Errorf("the agent CLI for this image (%s): %w", libc, err)
	}
	own = m.ownMounts(s.ID, s.Checked, cli, loader)
	spec = m.containerSpec(s, rec, s.Checked, append(slices.Clone(own), m.agentMounts(rec, s.Checked)...))
	spec.Labels = nil
	return spec, own, nil
}

// ownTargets are where ownMounts may be, save the time zone's file.
func ownTargets() []string {
	return []string{
		hostPath, shimPath, ConnectPath, cliPath, "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf", "/tmp", muslLoaderPath(), trustPath,
	}
}

// ownMounts are the server's things that every sandbox has.
func (m *Manager) ownMounts(id string, checked Plan, cli, loader string) []engine.Mount {
	dir := m.dir(id)
	mounts := []engine.Mount{
		{Source: filepath.Join(dir, "run"), Target: hostPath, ReadOnly: true},
		{Source: m.cfg.Shim, Target: shimPath, ReadOnly: true},
		{Source: m.cfg.Shim, Target: ConnectPath, ReadOnly: true},
		{Source: cli, Target: cliPath, ReadOnly: true},
		{Source: filepath.Join(dir, "passwd"), Target: "/etc/passwd", ReadOnly: true},
		{Source: filepath.Join(dir, "group"), Target: "/etc/group", ReadOnly: true},
		{Source: filepath.Join(dir, "hosts"), Target: "/etc/hosts", ReadOnly: true},
		{Source: filepath.Join(dir, "resolv.conf"), Target: "/etc/resolv.conf", ReadOnly: true},
		{Source: filepath.Join(dir, trustName), Target: trustPath, ReadOnly: true}, // empty where nothing is bound
		{Source: filepath.Join(dir, "tmp"), Target: "/tmp"},                        // anybody's, and gone with the sandbox: its files may have any owner
	}
	if len(m.cfg.Zoneinfo) > 0 {
		mounts = append(mounts, engine.Mount{Source: filepath.Join(dir, "zoneinfo"), Target: zoneinfoPath + "/" + m.cfg.Timezone, ReadOnly: true})
	}
	if loader != "" && checked.facts.MuslLoader == "" {
		mounts = append(mounts, engine.Mount{Source: loader, Target: muslLoaderPath(), ReadOnly: true})
	}
	return mounts
}

// agentMounts are the directories in which owners matter.
func (m *Manager) agentMounts(rec record, checked Plan) []engine.Mount {
	mounts := []engine.Mount{{Source: m.ownPath(rec, "home"), Target: HomePath}}
	if checked.workspaceAt != "" {
		mounts = append(mounts, engine.Mount{Source: m.ownPath(rec, "workspace"), Target: checked.workspaceAt})
	}
	for _, v := range checked.mounts {
		mounts = append(mounts, engine.Mount{Source: v.source, Target: v.target, ReadOnly: v.readOnly, NoExec: v.noExec})
	}
	return mounts
}

func (m *Manager) containerSpec(s Spec, rec record, checked Plan, mounts []engine.Mount) engine.ContainerSpec {
	for i := range mounts {
		mounts[i].Source = m.cfg.HostPath(mounts[i].Source)
	}
	spec := engine.ContainerSpec{
		UserNS: rec.namespace(m.cfg.Info.Rootless),
		Name:   containerName(s.ID), Image: checked.imageID,
		Labels:  map[string]string{labelInstance: m.cfg.Instance, labelSandbox: s.ID, labelRun: s.RunID},
		Command: []string{shimPath}, User: "0:0", Workdir: "/", Hostname: hostName,
		Mounts: mounts, Tmpfs: []engine.Tmpfs{{Target: runPath, Bytes: tmpfsBytes, Mode: 0o700}},
		Secrets:      s.secrets,
		ReadOnlyRoot: !s.WritableRoot, ShmBytes: shmBytes,
		CapDrop: []string{"all"}, CapAdd: rootCapabilities(rec.RootHooks), NoNewPrivileges: true,
		Network: engine.NetworkNone, LabelDisable: m.cfg.Info.SELinux,
		MemoryBytes: s.Plan.MemoryBytes, NanoCPUs: s.Plan.NanoCPUs, CPUShares: s.Plan.CPUShares,
	}
	m.cfg.relax(&spec)
	if s.Reach.Network.Mode == stromboli.NetworkBridge {
		spec.Network = engine.NetworkBridge
	}
	return spec
}

// mustMount is what has to be mounted, by device and inode: the volumes and,
// where the server mounts for the engine, the session's own directories, since
// an engine that doesn't see the server's mounts has mounted an empty directory.
func (m *Manager) mustMount(rec record, checked Plan) ([]mount, error) {
	want := slices.Clone(checked.mounts)
	if rec.UserNS != UserNSAuto {
		return want, nil
	}
	for _, own := range m.agentMounts(rec, Plan{workspaceAt: checked.workspaceAt}) {
		var st syscall.Stat_t
		if err := syscall.Stat(own.Source, &st); err != nil {
			return nil, fmt.Errorf("verifying the mounts: %s: %w", own.Source, err)
		}
		want = append(want, mount{source: own.Source, target: own.Target, dev: st.Dev, ino: st.Ino, own: true})
	}
	return want, nil
}

// verifyMounts compares what is mounted with what was checked: a path that was
// swapped in between leads elsewhere.
func (m *Manager) verifyMounts(stats []shim.MountStat, want []mount) error {
	for i, v := range want {
		switch {
		case i < len(stats) && stats[i].Err == "" && stats[i].Dev == v.dev && stats[i].Ino == v.ino:
		case v.own:
			return stromboli.Errorf(stromboli.NotEnforced, "the engine doesn't see what the server mounts for it (%s): "+
				"run both in one mount namespace, or set STROMBOLI_SANDBOX_USERNS=none", v.source)
		default:
			return stromboli.Errorf(stromboli.NotEnforced, "volume %s: what is mounted is not what was checked: %s", v.source, m.swapped())
		}
	}
	return nil
}

// samePath is what a server in a container asks of volumes.
const samePath = "a server in a container needs each allowed directory mounted into it at the path that it has on the host"

func (m *Manager) swapped() string {
	if m.cfg.Container {
		return samePath
	}
	return "the path was changed meanwhile"
}

// missingSource tells of a volume that is there for a server in a container,
// but not on the host.
func (m *Manager) missingSource(checked Plan, err error) error {
	for _, v := range checked.mounts {
		if m.cfg.Container && strings.Contains(err.Error(), v.source+": no such file or directory") {
			return stromboli.Errorf(stromboli.NotEnforced, "volume %s does not exist on the engine's host: %s", v.source, samePath)
		}
	}
	return engineError(err)
}

// engineError gives an engine's error the code that callers know.
func engineError(err error) error {
	switch {
	case errors.Is(err, engine.ErrUnavailable):
		return (&stromboli.Error{
			Code: stromboli.EngineDown, Message: "the container engine doesn't answer", RetryAfter: 5 * time.Second,
		}).WithCause(err)
	case errors.Is(err, engine.ErrImageMissing):
		return stromboli.Errorf(stromboli.ImageMissing, "the image is not on this machine: %w", err)
	case errors.Is(err, engine.ErrSecretMissing):
		return stromboli.Errorf(stromboli.NotConfigured, "a secret of the engine's was deleted before the run started: %w", err)
	case errors.Is(err, engine.ErrStorageFull):
		return stromboli.Errorf(stromboli.StorageFull, "the container engine's disk is full: %w", err)
	}
	return err
}

// storage marks an error of the disk that is full.
func storage(err error) error {
	if errors.Is(err, errNoSpace) {
		return stromboli.Errorf(stromboli.StorageFull, "%w", err)
	}
	return err
}
