package sandbox

import (
	"context"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// shimCapabilities are the only ones of the container's root.
func shimCapabilities() []string { return []string{"SETUID", "SETGID", "KILL"} }

// rootCapabilities are those of a container's root: the shim's and, where hooks
// run as root, what installing packages takes.
func rootCapabilities(hooks bool) []string {
	if !hooks {
		return shimCapabilities()
	}
	return append(shimCapabilities(), "CHOWN", "DAC_OVERRIDE", "FOWNER", "SETFCAP")
}

// attest reads back what is in force for a sandbox, from inside and from the
// engine, and compares it with what was asked for. It is the last step before
// an agent exists.
func (m *Manager) attest(ctx context.Context, s Spec, box *Sandbox, checked Plan) error {
	var facts shim.Facts
	var inspected engine.Container
	want, err := m.mustMount(box.record, checked)
	if err != nil {
		return err
	}
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() (err error) {
		targets := make([]string, len(want))
		for i, v := range want {
			targets[i] = v.target
		}
		if facts, err = box.Peer.Attest(ctx, targets, box.UID, box.GID); err != nil {
			return fmt.Errorf("reading back what is in force: %w", err)
		}
		return nil
	})
	both.Go(func() (err error) {
		if inspected, err = m.cfg.Engine.Inspect(ctx, containerName(s.ID)); err != nil {
			return engineError(err)
		}
		return nil
	})
	if err := both.Wait(); err != nil {
		return err
	}
	if s.WritableRoot || m.cfg.Off.ReadOnlyRoot {
		box.RootDir = inspected.InForce.UpperDir
		box.disk.measureRoot(box.RootDir)
		if err := m.writeRecord(box.record); err != nil {
			return storage(err)
		}
	}
	if err := m.verifyMounts(facts.Targets, want); err != nil {
		return err
	}
	mounts := append(m.ownMounts(s.ID, checked, "", ""), m.agentMounts(box.record, checked)...)
	j := judgement{spec: m.containerSpec(s, box.record, checked, mounts), facts: facts, inspected: inspected.InForce, info: m.cfg.Info, box: box.record, off: m.cfg.Off}
	j.own = ownNamespaces()
	box.Attestation = j.attestation(s)
	box.Attestation.SwitchedOff = m.cfg.switchedOff(j.spec)
	j.all()
	if len(j.missing) > 0 && !m.cfg.Unjudged {
		return stromboli.Errorf(stromboli.NotEnforced, "the sandbox is not what was asked for: %s", strings.Join(j.missing, "; "))
	}
	return nil
}

// judgement compares one sandbox with what was asked for.
type judgement struct {
	spec      engine.ContainerSpec
	facts     shim.Facts
	inspected engine.InForce
	info      engine.Info
	box       record
	off       Off
	own       map[string]uint64 // this process's namespaces

	a       *stromboli.Attestation
	missing []string
}

// unless notes what is not as it was asked for.
func (j *judgement) unless(ok bool, format string, args ...any) {
	if !ok {
		j.missing = append(j.missing, fmt.Sprintf(format, args...))
	}
}

func (j *judgement) all() {
	j.powers()
	j.namespaces()
	j.files()
	j.limits()
	j.unless(!j.inspected.Privileged, "the engine made the container privileged")
	j.unless(j.inspected.SeccompProfile == "default" || j.off.Seccomp, "the engine's seccomp profile is %q", j.inspected.SeccompProfile)
	if j.spec.Network != engine.NetworkBridge {
		j.unless(slices.Equal(j.facts.Interfaces, []string{"lo"}), "the network has the devices %v beside loopback", without(j.facts.Interfaces, "lo"))
	}
}

func (j *judgement) powers() {
	var few uint64
	for _, name := range rootCapabilities(j.box.RootHooks) {
		few |= 1 << capability(name)
	}
	agent, init := j.facts.Agent, j.facts.Shim
	for _, set := range []string{"CapEff", "CapPrm", "CapInh", "CapAmb"} {
		j.unless(agent.Caps[set] == 0, "the agent has the capabilities %v (%s)", capNames(agent.Caps[set]), set)
		j.unless(init.Caps[set]&^few == 0, "the shim has the capabilities %v (%s)", capNames(init.Caps[set]&^few), set)
	}
	j.unless(agent.Caps["CapBnd"]&^few == 0, "the agent's bounding set has %v", capNames(agent.Caps["CapBnd"]&^few))
	uid, gid := j.box.UID, j.box.GID
	j.unless(agent.UIDs == [4]int{uid, uid, uid, uid} && agent.GIDs == [4]int{gid, gid, gid, gid} && len(agent.Groups) == 0,
		"the agent is uid %v, gid %v with the groups %v, not %d:%d alone", agent.UIDs, agent.GIDs, agent.Groups, uid, gid)
	for who, p := range map[string]shim.ProcessFacts{"agent": agent, "shim": init} {
		j.unless(p.NoNewPrivs, "the %s can get new privileges", who)
		filters := j.off.filters()
		j.unless(filters == 0 || p.Seccomp == 2, "the %s has no seccomp filter", who)
		// Kernels before 5.9 don't tell the number.
		j.unless(p.SeccompFilters == 0 || p.SeccompFilters >= filters, "the %s has %d seccomp filters, not the engine's and the shim's", who, p.SeccompFilters)
	}
}

func (j *judgement) namespaces() {
	for kind, private := range j.a.Namespaces {
		switch {
		case private:
		case kind == "user" && j.a.UserNamespace == UserNSNone: // and the attestation says so
		case kind == "ipc" && j.off.IPC, kind == "uts" && j.off.UTS, kind == "cgroup" && j.off.Cgroup:
		default:
			j.unless(false, "the %s namespace is the host's", kind)
		}
	}
	for kind, ids := range map[string]struct {
		asked []engine.IDRange
		got   [][3]int64
	}{"user": {j.spec.UserNS.UIDs, j.facts.UIDMap}, "group": {j.spec.UserNS.GIDs, j.facts.GIDMap}} {
		if len(ids.asked) == 1 {
			want := [3]int64{int64(ids.asked[0].Container), int64(ids.asked[0].Host), int64(ids.asked[0].Size)}
			j.unless(len(ids.got) == 1 && ids.got[0] == want, "the sandbox's %s ids are %v, not %v", kind, ids.got, want)
		}
	}
	if j.info.Rootless {
		j.unless(len(j.facts.UIDMap) > 0 && j.facts.UIDMap[0][1] != 0, "the sandbox's root is the host's")
	}
}

func (j *judgement) files() {
	j.unless(j.a.ReadOnly || !j.spec.ReadOnlyRoot, "the root file system can be written")
	mounted := map[string]shim.MountFact{}
	for _, m := range j.facts.Mounts { // a later mount lies over an earlier one
		mounted[m.Target] = m
	}
	for _, want := range j.spec.Mounts {
		got, ok := mounted[want.Target]
		j.unless(ok, "nothing is mounted at %s", want.Target)
		if ok {
			j.unless(got.RO || !want.ReadOnly, "%s can be written", want.Target)
			j.unless(has(got, "nosuid") && has(got, "nodev"), "setuid bits or devices count in %s", want.Target)
			j.unless(has(got, "noexec") || !want.NoExec, "programs in %s can be executed", want.Target)
		}
	}
	j.submounts(mounted)
	j.secrets(mounted)
	for _, path := range maskedPaths() {
		if j.off.MaskedPaths {
			break
		}
		if _, err := os.Lstat(path); err != nil {
			continue // this kernel has none
		}
		m, ok := mounted[path]
		j.unless(ok, "%s is not masked", path)
		if ok {
			j.unless(m.RO || m.Type == "devtmpfs" || m.Type == "tmpfs", "%s can be written", path)
		}
	}
	j.unless(len(without(j.facts.Devices, harmlessDevices()...)) == 0, "there are the devices %v", without(j.facts.Devices, harmlessDevices()...))
}

// limits compares each limit; where the engine enforces none, by the operator's
// leave, what is missing is told and no more.
func (j *judgement) limits() {
	c, swap := j.facts.Cgroup, int64(0)
	if j.spec.Swap {
		swap = j.spec.MemoryBytes
	}
	memory, cpus, pids := j.spec.MemoryBytes, j.spec.NanoCPUs, max(0, j.spec.PidsLimit)
	j.a.Limits = map[string]stromboli.AttestedLimit{
		"memory_bytes": {Asked: memory, InForce: c.MemoryBytes}, "swap_bytes": {Asked: swap, InForce: c.SwapBytes},
		"nano_cpus": {Asked: cpus, InForce: c.NanoCPUs}, "pids": {Asked: pids, InForce: c.Pids},
		"open_files": {Asked: j.spec.Nofile, InForce: j.facts.OpenFiles},
	}
	shares, sharesOK := j.cpuShares(c)
	// The kernel counts memory in pages and CPU time in microseconds.
	near := func(asked, got, within int64) bool {
		return asked == 0 || got > 0 && got <= asked && asked-got <= within
	}
	for _, l := range []struct {
		ok   bool
		what string
	}{
		{near(memory, c.MemoryBytes, 64<<10), "memory: asked for " + strconv.FormatInt(memory, 10) + " bytes, in force " + strconv.FormatInt(c.MemoryBytes, 10)},
		{near(cpus, c.NanoCPUs, 1e7), "cpus: asked for " + strconv.FormatInt(cpus, 10) + " billionths, in force " + strconv.FormatInt(c.NanoCPUs, 10)},
		{near(pids, c.Pids, 0), "pids: asked for " + strconv.FormatInt(pids, 10) + ", in force " + strconv.FormatInt(c.Pids, 10)},
		{sharesOK, shares},
	} {
		switch {
		case l.ok:
		case !j.info.EnforcesLimits:
			j.a.Unenforced = append(j.a.Unenforced, l.what)
		default:
			j.unless(false, "%s", l.what)
		}
	}
	if memory > 0 && (c.SwapBytes < 0 || c.SwapBytes > swap) { // without a limit of memory there is none of both together
		what := fmt.Sprintf("swap: %d bytes were to be had beyond the memory", swap)
		if j.info.EnforcesLimits && j.info.LimitsSwap {
			j.unless(false, "%s, in force %d", what, c.SwapBytes)
		} else {
			j.a.Unenforced = append(j.a.Unenforced, what)
		}
	}
	files := j.facts.OpenFiles
	j.unless(files > 0 && (j.spec.Nofile == 0 || files <= j.spec.Nofile), "open files: asked for %d, in force %d", j.spec.Nofile, files)
}

// attestation is what the facts say.
func (j *judgement) attestation(s Spec) *stromboli.Attestation {
	a := &stromboli.Attestation{
		Version: 1, At: time.Now().UTC(), Sandbox: s.ID, Image: j.box.Image, ImageDigest: j.box.ImageDigest, Runtime: j.inspected.OCIRuntime,
		UserNamespace: UserNSNone, UserNamespaceWhy: j.box.UserNSWhy, Namespaces: map[string]bool{}, Shim: powersOf(j.facts.Shim), Agent: powersOf(j.facts.Agent),
		Devices: j.facts.Devices, Interfaces: j.facts.Interfaces, Network: s.Reach.Network.Mode, Egress: "filtered", SELinux: "none",
		Mounts: []stromboli.AttestedMount{}, Masked: []string{}, Unenforced: []string{},
	}
	switch {
	case j.spec.UserNS.KeepID:
		a.UserNamespace = UserNSKeepID
	case len(j.spec.UserNS.UIDs) > 0:
		a.UserNamespace = UserNSAuto
	}
	for _, b := range s.Reach.Bindings {
		a.Bindings = append(a.Bindings, b.To)
	}
	if s.Reach.Network.Mode == stromboli.NetworkBridge {
		a.Egress = "unfiltered"
	}
	if j.info.SELinux {
		a.SELinux = "confined"
		if j.spec.LabelDisable {
			a.SELinux = "disabled"
		}
	}
	for kind, inode := range j.facts.Namespaces {
		a.Namespaces[kind] = inode != j.own[kind]
	}
	targets := map[string]shim.MountStat{}
	for _, t := range j.facts.Targets {
		targets[t.Target] = t
	}
	for _, m := range j.facts.Mounts {
		if m.Target == "/" {
			a.ReadOnly = m.RO
		}
		if slices.Contains(maskedPaths(), m.Target) {
			a.Masked = append(a.Masked, m.Target)
		}
		a.Mounts = append(a.Mounts, stromboli.AttestedMount{
			Target: m.Target, Type: m.Type, ReadOnly: m.RO, NoSUID: has(m, "nosuid"), NoDev: has(m, "nodev"), NoExec: has(m, "noexec"),
			Device: targets[m.Target].Dev, Inode: targets[m.Target].Ino,
		})
	}
	j.a = a
	return a
}

func has(m shim.MountFact, option string) bool { return slices.Contains(m.Options, option) }

func powersOf(p shim.ProcessFacts) stromboli.Powers {
	caps := map[string][]string{}
	for set, name := range map[string]string{"CapEff": "effective", "CapPrm": "permitted", "CapInh": "inheritable", "CapAmb": "ambient", "CapBnd": "bounding"} {
		caps[name] = capNames(p.Caps[set])
	}
	return stromboli.Powers{
		UID: p.UIDs[1], GID: p.GIDs[1], Groups: p.Groups, Capabilities: caps, NoNewPrivileges: p.NoNewPrivs, SeccompFilters: p.SeccompFilters,
	}
}

// maskedPaths are those of the kernel's that tell of the host or change it.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	}
}

// harmlessDevices are what an engine puts into every container's /dev.
func harmlessDevices() []string {
	return []string{"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
}

func without(list []string, known ...string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(known, s) })
}

// ownNamespaces are this process's, by kind.
func ownNamespaces() map[string]uint64 {
	own := map[string]uint64{}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			continue
		}
		own[kind], _ = strconv.ParseUint(strings.Trim(strings.TrimPrefix(link, kind+":"), "[]"), 10, 64)
	}
	return own
}

// capNames are the names of a set's capabilities, those that this build doesn't
// know by number.
func capNames(set uint64) []string {
	names := []string{}
	for set != 0 {
		n := bits.TrailingZeros64(set)
		set &^= 1 << n
		if n < len(capabilityNames()) {
			names = append(names, capabilityNames()[n])
		} else {
			names = append(names, "CAP_"+strconv.Itoa(n))
		}
	}
	return names
}

func capability(name string) int { return slices.Index(capabilityNames(), name) }

// capabilityNames are by number, as in linux/capability.h.
func capabilityNames() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE",
		"NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
		"SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
		"MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
	}
}
