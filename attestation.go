package stromboli

import "time"

// Attestation is what was in force for a run's sandbox when its agent was
// about to start: read back from inside, by the shim out of the kernel's own
// files, and from the engine. What was asked for and is not in force is not in
// here: such a run fails as not_enforced.
type Attestation struct {
	Version     int       `json:"version"` // of this shape: 1
	At          time.Time `json:"at"`
	Sandbox     string    `json:"sandbox"`
	Image       string    `json:"image"`
	ImageDigest string    `json:"image_digest,omitempty"`
	Runtime     string    `json:"runtime,omitempty"` // the engine's OCI runtime

	// UserNamespace: auto (the container's ids are nobody's on the host), keep-id
	// (rootless: they are the server's own and subordinate ones of that user's), or
	// none: they are the host's.
	// UserNamespaceWhy says why it isn't auto.
	UserNamespace    string `json:"user_namespace"`
	UserNamespaceWhy string `json:"user_namespace_why,omitempty"`
	// Namespaces tells of each kind whether it is the sandbox's own.
	Namespaces map[string]bool `json:"namespaces"`
	Shim       Powers          `json:"shim"`
	Agent      Powers          `json:"agent"`
	ReadOnly   bool            `json:"read_only_root"`
	Mounts     []AttestedMount `json:"mounts"`
	// Devices are the nodes in /dev, Interfaces the network's.
	Devices    []string `json:"devices"`
	Interfaces []string `json:"interfaces"`
	// Masked are paths of the kernel's that can't be read, or not written.
	Masked []string `json:"masked"`
	// Limits by name: memory_bytes, swap_bytes (beyond memory), nano_cpus, pids,
	// open_files, and cpu_shares or, with cgroup v2, cpu_weight.
	Limits  map[string]AttestedLimit `json:"limits"`
	Network NetworkMode              `json:"network"`
	// Egress: filtered, or unfiltered with the network mode bridge.
	Egress string `json:"egress"`
	// Bindings are the hosts, with ports, at which egress shows a secret.
	Bindings []string `json:"bindings,omitempty"`
	SELinux  string   `json:"selinux"` // none, confined or disabled
	// Unenforced is what was asked for and is not in force, by the operator's
	// leave (STROMBOLI_RESOURCES_ALLOW_UNENFORCED).
	Unenforced []string `json:"unenforced"`
	// SwitchedOff are the settings, as NAME=value, by which the operator has taken
	// from the hardening; what is in force without it stands in the fields above.
	SwitchedOff []string `json:"switched_off"`
}

// Powers are what a process may do.
type Powers struct {
	UID    int   `json:"uid"`
	GID    int   `json:"gid"`
	Groups []int `json:"groups"`
	// Capabilities by set: effective, permitted, inheritable, ambient, bounding.
	Capabilities    map[string][]string `json:"capabilities"`
	NoNewPrivileges bool                `json:"no_new_privileges"`
	// SeccompFilters is how many filters a system call passes: the engine's and
	// the shim's are two. 0: none, or a kernel before 5.9, which doesn't tell.
	SeccompFilters int `json:"seccomp_filters"`
}

// AttestedMount is a mount in the sandbox.
type AttestedMount struct {
	Target   string `json:"target"`
	Type     string `json:"type"` // of the file system
	ReadOnly bool   `json:"read_only"`
	NoSUID   bool   `json:"nosuid"`
	NoDev    bool   `json:"nodev"`
	NoExec   bool   `json:"noexec"`
	Device   uint64 `json:"device,omitempty"` // of the target, where it is a volume
	Inode    uint64 `json:"inode,omitempty"`
}

// AttestedLimit is a limit that was asked for, 0 for none, and what the kernel
// says of it, -1 for none. Of swap 0 means that there is to be none.
type AttestedLimit struct {
	Asked   int64 `json:"asked"`
	InForce int64 `json:"in_force"`
}

// AttestationSummary is what run.started tells of an attestation.
type AttestationSummary struct {
	UserNamespace   string   `json:"user_namespace"`
	NoNewPrivileges bool     `json:"no_new_privileges"`
	SeccompFilters  int      `json:"seccomp_filters"`
	ReadOnlyRoot    bool     `json:"read_only_root"`
	Egress          string   `json:"egress"`
	Unenforced      []string `json:"unenforced"`
	SwitchedOff     []string `json:"switched_off"`
}

// Summary is the short form.
func (a Attestation) Summary() AttestationSummary {
	return AttestationSummary{
		UserNamespace: a.UserNamespace, NoNewPrivileges: a.Agent.NoNewPrivileges, SeccompFilters: a.Agent.SeccompFilters,
		ReadOnlyRoot: a.ReadOnly, Egress: a.Egress, Unenforced: a.Unenforced, SwitchedOff: a.SwitchedOff,
	}
}
