package sandbox

import (
	"github.com/tomblancdev/stromboli/internal/engine"
)

// Off is what an operator has switched off of the hardening; the zero value is
// nothing. No request changes it, and every attestation tells of it. Some things
// can't be switched off, since the server's own promises rest on them:
// docs/security.md has them, with the reasons.
type Off struct {
	Seccomp       bool // the engine's seccomp profile
	SyscallFilter bool // the shim's filter
	ReadOnlyRoot  bool // agents may change what the image lets their user change
	MaskedPaths   bool // the kernel's files that tell of the host
	IPC           bool // a namespace of its own
	UTS           bool
	Cgroup        bool
	Swap          bool // the limit of swap, which is none
}

// relax gives a container what is left of the hardening.
func (c Config) relax(spec *engine.ContainerSpec) {
	spec.SeccompUnconfined, spec.Unmasked, spec.Swap = c.Off.Seccomp, c.Off.MaskedPaths, c.Off.Swap
	spec.HostIPC, spec.HostUTS, spec.HostCgroup = c.Off.IPC, c.Off.UTS, c.Off.Cgroup
	if c.Off.ReadOnlyRoot {
		spec.ReadOnlyRoot = false
	}
	spec.Nofile = c.OpenFiles
	if spec.PidsLimit = c.Pids; c.Pids == 0 {
		spec.PidsLimit = pidsLimit
	}
	if !c.Info.EnforcesLimits {
		spec.Nproc = spec.PidsLimit // the one limit that works without cgroups
	}
}

// filters is how many seccomp filters each system call has to pass.
func (o Off) filters() int {
	n := 0
	for _, off := range []bool{o.Seccomp, o.SyscallFilter} {
		if !off {
			n++
		}
	}
	return n
}

// switchedOff names the settings by which a sandbox has less than it would have
// without them.
func (c Config) switchedOff(spec engine.ContainerSpec) []string {
	list := []string{}
	for _, s := range []struct {
		off     bool
		setting string
	}{
		{!c.UserNS && !c.Info.Rootless, "STROMBOLI_SANDBOX_USERNS=none"},
		{c.Off.Seccomp, "STROMBOLI_SANDBOX_SECCOMP=unconfined"},
		{c.Off.SyscallFilter, "STROMBOLI_SANDBOX_SYSCALL_FILTER=false"},
		{c.Off.ReadOnlyRoot, "STROMBOLI_SANDBOX_READ_ONLY_ROOT=false"},
		{c.Off.MaskedPaths, "STROMBOLI_SANDBOX_MASKED_PATHS=false"},
		{c.Off.IPC, "STROMBOLI_SANDBOX_IPCNS=host"},
		{c.Off.UTS, "STROMBOLI_SANDBOX_UTSNS=host"},
		{c.Off.Cgroup, "STROMBOLI_SANDBOX_CGROUPNS=host"},
		{c.Off.Swap, "STROMBOLI_SANDBOX_SWAP=true"},
		{c.Pids < 0, "STROMBOLI_SANDBOX_PIDS_LIMIT=0"},
		{c.OpenFiles == 0, "STROMBOLI_SANDBOX_OPEN_FILES=0"},
		{spec.MemoryBytes == 0, "STROMBOLI_RESOURCES_MEMORY=0"},
		{spec.NanoCPUs == 0, "STROMBOLI_RESOURCES_CPUS=0"},
		{c.DiskLimit == 0, "STROMBOLI_RESOURCES_DISK=0"},
	} {
		if s.off {
			list = append(list, s.setting)
		}
	}
	return list
}
