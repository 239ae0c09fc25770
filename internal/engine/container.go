package engine

import (
	"io/fs"
	"time"
)

// ContainerSpec describes a container. Everything in it is fixed at Create. The
// zero value of each field is the safer choice: no network, no mounts, the
// engine's own seccomp filter, namespaces of its own.
type ContainerSpec struct {
	Name   string // unique in the engine; the caller's handle when Create's answer is lost
	Image  string
	Labels map[string]string

	Command  []string          // the first process's argv, in place of the image's entrypoint and command
	Env      map[string]string // beside the image's own; never put secrets here, inspect shows them
	User     string            // "uid:gid"
	Workdir  string            // must exist in the image or as a mount; empty: the image's
	Hostname string
	Timezone string // IANA name or "local"; empty: the image's

	Mounts       []Mount
	Tmpfs        []Tmpfs
	Secrets      []SecretMount
	ReadOnlyRoot bool
	ShmBytes     int64 // size of /dev/shm; 0: the engine's default

	CapDrop         []string // names without CAP_, or "all"
	CapAdd          []string // what stays after CapDrop
	NoNewPrivileges bool
	UserNS          UserNS
	Network         Network
	LabelDisable    bool // no SELinux separation, for hosts where SELinux enforces

	SeccompUnconfined bool // without the engine's seccomp profile
	Unmasked          bool // the kernel's files that tell of the host or change it are neither hidden nor read-only
	HostIPC           bool // the host's namespace, and its /dev/shm: ShmBytes has no effect
	HostUTS           bool // the host's namespace, and its name: Hostname has no effect
	HostCgroup        bool // the host's namespace: the container sees where its cgroup lies

	MemoryBytes int64 // memory, and memory plus swap: no swap at all; 0: no limit
	Swap        bool  // as much swap as MemoryBytes on top of it
	NanoCPUs    int64 // 1e9 is one CPU; 0: no limit
	CPUShares   int64 // relative weight; 0: the engine's default
	PidsLimit   int64 // 0: the engine's default; negative: no limit
	Nofile      int64 // open files, soft and hard; 0 or more than allowed: as many as allowed
	Nproc       int64 // processes of one uid, soft and hard, counted as the kernel counts RLIMIT_NPROC; 0 or more than allowed: as many as allowed

	StopTimeout time.Duration // grace of a stop without one of its own, whole seconds
}

// Network is a container's network.
type Network string

const (
	// NetworkNone is a network of its own with nothing but loopback. It is also
	// what the empty value means.
	NetworkNone Network = "none"
	// NetworkBridge is the engine's default network, by a device of its own.
	NetworkBridge Network = "bridge"
	// NetworkHost is the host's own network; only for comparisons and builds.
	NetworkHost Network = "host"
)

// Mount puts a directory or file of the engine's host into a container.
type Mount struct {
	Source   string // absolute path on the engine's host; must exist
	Target   string // absolute path in the container
	ReadOnly bool
	NoExec   bool // programs in it can't be executed
	// Devices and setuid bits in a mount are never honoured.
}

// Tmpfs puts an empty file system in memory into a container, without setuid
// bits, devices or executable files. Mounts below it keep their own flags.
type Tmpfs struct {
	Target string
	Bytes  int64       // its size limit; counted against the container's memory
	Mode   fs.FileMode // of its root, which belongs to the container's root
}

// UserNS is a container's user namespace: the zero value is the engine's own.
type UserNS struct {
	// KeepID maps the user whom the engine runs as to UID and GID in the
	// container. Rootless engines only.
	KeepID   bool
	UID, GID int
	// UIDs and GIDs are the ids that the container has and what they are on the
	// engine's host. Both or none; rootful engines only. Of more than one piece
	// each, images are copied or don't mount.
	UIDs, GIDs []IDRange
}

// IDRange maps Size ids, from Container on in a container, to those from Host
// on where the engine runs.
type IDRange struct{ Container, Host, Size uint32 }

// Created is the answer to Create.
type Created struct {
	ID       string
	Warnings []string // what the engine will not do, in its own words
}

// State is a container's state.
type State string

// The states. An engine's in-between states appear as the state they come from.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateExited  State = "exited"
	StateUnknown State = "unknown"
)

// Container is a container as the engine describes it.
type Container struct {
	ID          string
	Name        string
	Image       string // the name it was created from
	ImageID     string
	ImageDigest string
	Labels      map[string]string
	Created     time.Time

	State      State
	PID        int // of its first process on the engine's host; 0 unless running
	ExitCode   int // meaningful in StateExited
	OOMKilled  bool
	StartedAt  time.Time // zero: never
	FinishedAt time.Time // zero: not yet
	Error      string

	InForce InForce // Inspect only
}

// InForce is what an engine says that it applies to a container. Where
// Info.EnforcesLimits is false the limits are wishes.
type InForce struct {
	MemoryBytes     int64
	MemorySwapBytes int64 // memory plus swap; equal to MemoryBytes means no swap
	NanoCPUs        int64
	CPUShares       int64
	PidsLimit       int64
	ReadOnlyRoot    bool
	NoNewPrivileges bool
	SeccompProfile  string   // "default" unless it was changed
	Capabilities    []string // of the first process, with CAP_
	BoundingSet     []string
	Network         string
	User            string
	UserNS          string
	UIDs, GIDs      []IDRange // empty: the engine's own, or keep-id
	Privileged      bool
	OCIRuntime      string
	Mounts          []Mount // binds only
	// UpperDir is the directory on the engine's host with what was changed in
	// the root file system; empty where the engine doesn't tell.
	UpperDir string
}

// PathStat describes a path in a container.
type PathStat struct {
	Name string
	Size int64
	Mode fs.FileMode // of the last element itself, a symlink included
	// LinkTarget is where a symlink leads, as a path in the container; empty for
	// anything else. Symlinks earlier in the path are followed silently: see
	// FindSymlink.
	LinkTarget string
}

// Stats is a container's use of resources.
type Stats struct {
	CPU         time.Duration // all processes together, since the start
	MemoryBytes int64
	MemoryLimit int64
	Pids        int64
}
