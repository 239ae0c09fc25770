package sandbox

import (
	"context"
	"log/slog"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// Egress gives a sandbox its way out. Add returns when the socket exists or
// will as soon as egress is back.
type Egress interface {
	Add(ctx context.Context, d Door) error
	Remove(ctx context.Context, id string) error
}

// Door is a sandbox's registration with egress: who may speak on which socket,
// and what is behind it.
type Door struct {
	ID, RunID string
	Socket    string
	Token     string
	Peer      shim.PeerRule
	Reach     Reach
	Identity  Identity // for Reach.Bindings
}

// Reach is what egress does for a sandbox.
type Reach struct {
	Tenant  string
	Network stromboli.Network // checked and complete
	// Bindings are hosts that are shown a secret. A sandbox's hosts are those that
	// it was made with; what is shown may change.
	Bindings []Binding
}

// CLI finds the agent CLI for an image.
type CLI interface {
	// Build returns the host directory that holds the build for libc ("glibc"
	// or "musl"), and for musl the path of the loader to mount where an image
	// has none.
	Build(ctx context.Context, libc string) (dir, loader string, err error)
}

// Config is what a Manager needs.
type Config struct {
	Engine    engine.Engine
	Info      engine.Info
	DataDir   string // the server's own; no sandbox gets anything of it but what is made for it
	Sessions  string // sessions' directories; default: sessions below DataDir
	Shared    string // sandboxes' directories lie below it; default: DataDir
	Instance  string // labels this server's containers
	Shim      string // host path of the shim's binary
	CLI       CLI
	Egress    Egress
	Volumes   []string // allowed roots
	Protected []string // what no volume may hold or lie in, beside the directories above; absolute and without symlinks
	// KeepWorkdir: a working directory that is missing is refused, not made.
	KeepWorkdir   bool
	OrphanTimeout time.Duration
	// Timezone is the agents' time zone, empty for the image's, and Zoneinfo
	// its file, for images that have none; empty where the host has none.
	Timezone string
	Zoneinfo []byte
	// HostPath translates a path of this process's to the engine's host's. Nil:
	// they are the same.
	HostPath func(string) string
	// Container: this process is in a container, and the engine outside.
	Container bool
	// Reclaim removes a tree in which are files of the subordinate ids of a
	// rootless engine's user. Nil: it can't be done, and no hook of a rootless
	// engine's sandbox runs as its root.
	Reclaim func(ctx context.Context, dir string) error
	// UserNS gives sandboxes ids of their own on rootful engines, as far as this
	// host can.
	UserNS bool
	// SameMounts: the engine's service sees what this process mounts.
	SameMounts bool
	// StageDir holds mount points of sandboxes that are being started. Several
	// servers may share it. Default: /run/stromboli-mounts.
	StageDir string
	// Off is what an operator has switched off of the hardening.
	Off Off
	// Pids is how many processes and threads a sandbox may have; 0: 1024,
	// negative: no limit. OpenFiles is how many files each may have open; 0: as
	// many as the engine lets it.
	Pids, OpenFiles int64
	// AllowUnenforced lets sandboxes start whose limits have no effect.
	AllowUnenforced bool
	// Unjudged lets sandboxes start whatever is in force: for tests on an engine
	// that isolates nothing.
	Unjudged bool
	// DiskLimit is what a sandbox may take of the disk, in bytes; 0: as much as
	// there is. DiskReserve is the free space below which no new run is started;
	// negative: what suits the file system.
	DiskLimit, DiskReserve int64
	Logger                 *slog.Logger
}
