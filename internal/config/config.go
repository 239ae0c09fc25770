// Package config is the server's configuration: one struct whose comments are
// the manual, docs/CONFIGURATION.md. Values come from STROMBOLI_ variables of
// the environment over a YAML file over the defaults given here. It reads no
// global state: the environment is handed in.
//
// A field of the struct with an env tag is a setting, and nothing else has to be
// done for one: its key in the file is the variable's name in lower case, below
// the section that its struct's envPrefix names (STROMBOLI_SERVER_MAX_BODY is
// server.max_body). A field of the type Secret is never shown, and a file that
// sets one must be private. Further tags: reload:"true" for what a running
// server takes over on SIGHUP, which cmd must then do; noeffect:"why" for what
// existing deployments set and has no meaning here: setting it to anything but
// its default is warned of.
package config

import (
	"time"
)

// Config is everything that can be set, but for the model's credential; see
// LoadCredential.
type Config struct {
	// DataDir holds everything that the server keeps: database, sessions,
	// transcripts, sockets. Default: $XDG_DATA_HOME/stromboli, else
	// ~/.local/share/stromboli. Made with mode 0700.
	DataDir string `env:"STROMBOLI_DATA_DIR"`
	// CacheDir holds what can be fetched again: agent CLI and images. Default:
	// $XDG_CACHE_HOME/stromboli, else ~/.cache/stromboli.
	CacheDir string `env:"STROMBOLI_CACHE_DIR"`
	// DataHostDir is the data directory as the engine sees it, for a server in
	// a container. Default: the same path.
	DataHostDir string `env:"STROMBOLI_DATA_HOST_DIR"`
	// ContainerHost is the engine's socket as Podman's own tools name it,
	// such as unix:///run/podman/podman.sock. Default: the user's socket
	// where one answers, else a service that the server starts itself.
	ContainerHost string `env:"CONTAINER_HOST"`

	Server    Server    `envPrefix:"STROMBOLI_SERVER_"`
	TLS       TLS       `envPrefix:"STROMBOLI_TLS_"`
	Auth      Auth      `envPrefix:"STROMBOLI_AUTH_"`
	JWT       JWT       `envPrefix:"STROMBOLI_JWT_"`
	RateLimit RateLimit `envPrefix:"STROMBOLI_RATE_LIMIT_"`
	Agent     Agent     `envPrefix:"STROMBOLI_AGENT_"`
	Resources Resources `envPrefix:"STROMBOLI_RESOURCES_"`
	Sandbox   Sandbox   `envPrefix:"STROMBOLI_SANDBOX_"`
	Runs      Runs      `envPrefix:"STROMBOLI_RUNS_"`
	Egress    Egress    `envPrefix:"STROMBOLI_EGRESS_"`
	Secrets   Secrets   `envPrefix:"STROMBOLI_SECRETS_"`
	Webhook   Webhook   `envPrefix:"STROMBOLI_WEBHOOK_"`
	Jobs      Jobs      `envPrefix:"STROMBOLI_JOBS_"`
	Retention Retention `envPrefix:"STROMBOLI_RETENTION_"`
	Archive   Archive   `envPrefix:"STROMBOLI_ARCHIVE_"`
	Audit     Audit     `envPrefix:"STROMBOLI_AUDIT_"`
	Log       Log       `envPrefix:"STROMBOLI_LOG_"`
	Metrics   Metrics   `envPrefix:"STROMBOLI_METRICS_"`
	Compose   Compose   `envPrefix:"STROMBOLI_COMPOSE_"`
	Tracing   Tracing   `envPrefix:"STROMBOLI_TRACING_"`

	// APITokens are API tokens with all rights in the tenant default,
	// comma-separated, without names of their own.
	APITokens Secret `env:"STROMBOLI_API_TOKENS" reload:"true"`
	// APITokensFile is a JSON file with named API tokens, their tenants and
	// scopes; mode 0600. See AUTHENTICATION.md. SIGHUP reads it anew.
	APITokensFile string `env:"STROMBOLI_API_TOKENS_FILE" reload:"true"`

	// QueueMax is how many runs may wait for a free slot; one more is
	// answered 429.
	QueueMax int `env:"STROMBOLI_QUEUE_MAX" envDefault:"1000"`
	// QueueStuckAfter is how long a run may wait for a slot before /health calls
	// the queue stuck and says what it waits for.
	QueueStuckAfter time.Duration `env:"STROMBOLI_QUEUE_STUCK_AFTER" envDefault:"15m"`
	// DiskReserve is the free space, as a size, below which no new run is
	// started: pending ones wait, and new ones are answered 503. Default: a
	// fiftieth of the file system, at most 1g. 0: none.
	DiskReserve string `env:"STROMBOLI_DISK_RESERVE"`
	// OrphanTimeout is how long an agent goes on while no server is there.
	OrphanTimeout time.Duration `env:"STROMBOLI_ORPHAN_TIMEOUT" envDefault:"10m"`

	home    string
	file    string
	origins map[string]Origin // by variable; missing: the default
}

// File is the file that was read; empty: none.
func (c *Config) File() string { return c.file }

// Server is the HTTP side.
type Server struct {
	// Address is host:port to listen on, or unix:///path/to/socket. Default: :8080
	// with auth. While auth is off 127.0.0.1:8080, and it must be a loopback
	// address or a unix socket, unless STROMBOLI_AUTH_ALLOW_PUBLIC is true. A
	// socket that systemd hands over takes its place.
	Address string `env:"ADDRESS"`
	// SocketMode is the mode of a unix socket, octal. Who may write to it may call:
	// 0600 is this user alone, 0660 its group too.
	SocketMode string `env:"SOCKET_MODE" envDefault:"0600"`
	// AllowedHosts are further names that a request's Host may carry while
	// auth is off, comma-separated. Loopback names and the bound address are
	// always allowed.
	AllowedHosts []string `env:"ALLOWED_HOSTS"`
	// MaxBody is the largest request body in bytes.
	MaxBody int64 `env:"MAX_BODY" envDefault:"10485760"`
	// MaxConnections caps open connections; at most half of the open files that
	// the process may have are used. Each sync run and each stream holds one.
	MaxConnections int `env:"MAX_CONNECTIONS" envDefault:"4096"`
	// MaxPerAddress caps those from one IPv4 address or IPv6 /64. Behind a
	// reverse proxy all come from one.
	MaxPerAddress int `env:"MAX_CONNECTIONS_PER_ADDRESS" envDefault:"1024"`
}

// TLS is the server's certificate, for HTTPS.
type TLS struct {
	// Cert is a file with the certificate and its intermediate ones (PEM). With
	// Key the server speaks HTTPS alone, HTTP/2 included, TLS 1.2 or newer. When
	// the files change the new pair is taken within a second; a broken one leaves
	// the old in use, and the log tells.
	Cert string `env:"CERT"`
	// Key is the file with its private key (PEM), which not everybody may read.
	Key string `env:"KEY"`
}

// Agent is what runs in the sandboxes.
type Agent struct {
	// Image is the image of runs that name none. Default: the agent image
	// that `stromboli setup --image` makes.
	Image string `env:"IMAGE"`
	// ImageTag is the tag of Image where that names neither tag nor digest.
	ImageTag string `env:"IMAGE_TAG"`
	// AllowedImagePatterns are the images that runs may use beside Image and that
	// may be pulled, comma-separated: ghcr.io/org/*, python:3.*, localhost/**.
	// See below. Empty: every image on this machine may be used, and none is
	// pulled.
	AllowedImagePatterns []string `env:"ALLOWED_IMAGE_PATTERNS" reload:"true"`
	// InsecureRegistries are registries (host or host:port, comma-separated)
	// that are spoken to without TLS, or without checking its certificate. Those
	// on this machine's loopback always are.
	InsecureRegistries []string `env:"INSECURE_REGISTRIES"`
	// PullTimeout is how long the pull of an image may take.
	PullTimeout time.Duration `env:"PULL_TIMEOUT" envDefault:"30m"`
	// AllowedVolumes are the host directories below which volumes may lie,
	// comma-separated. A workdir that names a directory below them is mounted
	// too. Empty: every volume is refused.
	AllowedVolumes []string `env:"ALLOWED_VOLUMES" reload:"true"`
	// AllowAllVolumes permits every host directory as a volume, save for the
	// server's own files (data and cache directories, keys, credentials) and the
	// engine's socket, and what holds them. With a rootless engine an agent can
	// then change whatever this user can.
	AllowAllVolumes bool `env:"ALLOW_ALL_VOLUMES" reload:"true"`
	// WorkdirAutoCreate makes a run's working directory where neither a volume
	// nor the image has it; without it such runs are refused.
	WorkdirAutoCreate bool `env:"WORKDIR_AUTO_CREATE" envDefault:"true"`
	// RootHooks runs create hooks as the sandbox's root, so that they can install
	// packages, in sandboxes that have a user namespace of their own or no
	// volumes; with a rootless engine not where the server is in a container. In
	// others they run as the agent.
	RootHooks bool `env:"ROOT_HOOKS"`
	// Timezone is the time zone of agents: a name such as Europe/Paris, or
	// local for this host's. It works in images without time zone data too, as
	// long as the host has some. Default: the image's, which is UTC in the agent
	// image, on every host alike.
	Timezone string `env:"TIMEZONE"`
	// SessionsDir holds the sessions' directories. Default: sessions in the
	// data directory.
	SessionsDir string `env:"SESSIONS_DIR"`
	// SessionsHostDir is the same directory as the engine sees it, for a
	// server in a container that shares only this one with the host: what is
	// mounted into sandboxes then lies in its .stromboli.
	SessionsHostDir string `env:"SESSIONS_HOST_DIR"`
	// SecretsFile is a file that holds a Claude token (an API key or an OAuth
	// token), as `claude setup-token` prints it.
	SecretsFile string `env:"SECRETS_FILE"`
	// CredentialsFile is the Claude CLI's own. Default:
	// ~/.claude/.credentials.json.
	CredentialsFile string `env:"CREDENTIALS_FILE"`
	// TenantCredentialsFile is a JSON file with credentials for the model of
	// tenants that have their own, mode 0600. Where it is set, the sources above
	// are those of the tenant default, and a tenant that the file doesn't name
	// has none.
	TenantCredentialsFile string `env:"TENANT_CREDENTIALS_FILE"`
	// TenantCredentialsFallback gives tenants that the file doesn't name the
	// credential of the tenant default.
	TenantCredentialsFallback bool `env:"TENANT_CREDENTIALS_FALLBACK"`
	// MountClaudeCLI: the agent CLI is mounted into every sandbox, read-only,
	// whatever the image has; there is no other way, so that every run has the
	// version that this server knows.
	MountClaudeCLI bool `env:"MOUNT_CLAUDE_CLI" envDefault:"true" noeffect:"every sandbox gets the agent CLI that this server has verified, also where the image has one"`
	// CLIImage was the image that the agent CLI comes from.
	CLIImage string `env:"CLI_IMAGE" noeffect:"the agent CLI comes from its publisher and is verified, not from an image"`
	// CLIImageTag was that image's tag.
	CLIImageTag string `env:"CLI_IMAGE_TAG" noeffect:"the agent CLI comes from its publisher and is verified, not from an image"`
	// AutoPullCLI: a server fetches the agent CLI at its start where it is
	// missing. stromboli setup does so beforehand.
	AutoPullCLI bool `env:"AUTO_PULL_CLI" envDefault:"true" noeffect:"the agent CLI is fetched where it is missing; stromboli setup does so beforehand"`
}

// Resources are the limits of a run that names none.
type Resources struct {
	// Memory is a size such as 512m or 2g; there is no swap on top. 0: no limit.
	Memory string `env:"MEMORY" envDefault:"512m" reload:"true"`
	// CPUs is a decimal number of CPUs. 0: no limit.
	CPUs string `env:"CPUS" envDefault:"1" reload:"true"`
	// Timeout is how long a run may take.
	Timeout time.Duration `env:"TIMEOUT" envDefault:"30m" reload:"true"`
	// MaxMemory is the most memory that a run may ask for (podman.memory), as a
	// size. One that asks for more gets the maximum and the warning
	// limit_clamped, as with the three settings that follow; none may be below
	// the default for runs that ask for nothing. Empty: no maximum.
	MaxMemory string `env:"MAX_MEMORY" reload:"true"`
	// MaxCPUs is the most CPUs (podman.cpus). Empty: no maximum.
	MaxCPUs string `env:"MAX_CPUS" reload:"true"`
	// MaxCPUShares is the greatest weight (podman.cpu_shares). 0: no maximum.
	MaxCPUShares int64 `env:"MAX_CPU_SHARES" reload:"true"`
	// MaxTimeout is the most time (timeout and podman.timeout). 0: no maximum.
	MaxTimeout time.Duration `env:"MAX_TIMEOUT" reload:"true"`
	// Disk is what a sandbox may take of the disk in its home, its workspace and
	// /tmp together, and in its root where hooks may write to that, as a size;
	// earlier runs of its session count, volumes don't. More ends the run with
	// disk. 0: as much as there is.
	Disk string `env:"DISK" envDefault:"10g"`
	// AllowUnenforced lets runs start where the engine can't enforce memory,
	// cpu and process limits (rootless on cgroup v1). Each such run carries a
	// warning.
	AllowUnenforced bool `env:"ALLOW_UNENFORCED"`
}

// Sandbox is how sandboxes are confined.
type Sandbox struct {
	// UserNS: auto gives each sandbox of a rootful engine a user namespace of
	// its own, as far as the host can; none gives it the host's ids. A rootless
	// engine's sandboxes always have one.
	UserNS string `env:"USERNS" envDefault:"auto"`
	// Seccomp: default is the engine's seccomp profile; unconfined is none.
	Seccomp string `env:"SECCOMP" envDefault:"default"`
	// SyscallFilter refuses, beside the engine's profile, user namespaces, keys,
	// bpf, perf, userfaultfd, io_uring, mounts, raw sockets, and the families of
	// sockets that no network namespace confines. Without it an agent may reach
	// the host by AF_VSOCK.
	SyscallFilter bool `env:"SYSCALL_FILTER" envDefault:"true"`
	// ReadOnlyRoot: agents can't change the image's files. Without it they can
	// change those that the image lets their user change; the copies are gone
	// with the sandbox.
	ReadOnlyRoot bool `env:"READ_ONLY_ROOT" envDefault:"true"`
	// MaskedPaths hides the kernel's files that tell of the host, such as
	// /proc/kcore and /sys/firmware, and makes those read-only that change it.
	MaskedPaths bool `env:"MASKED_PATHS" envDefault:"true"`
	// IPCNS: private gives each sandbox an IPC namespace and a /dev/shm of its
	// own; host lets agents share memory with the host's programs.
	IPCNS string `env:"IPCNS" envDefault:"private"`
	// UTSNS: private gives each sandbox the host name sandbox; host shows it the
	// host's.
	UTSNS string `env:"UTSNS" envDefault:"private"`
	// CgroupNS: private hides from a sandbox where in the host's tree of cgroups
	// it lies; host shows it.
	CgroupNS string `env:"CGROUPNS" envDefault:"private"`
	// PidsLimit is how many processes and threads a sandbox may have. 0: no
	// limit.
	PidsLimit int64 `env:"PIDS_LIMIT" envDefault:"1024"`
	// OpenFiles is how many files each process of a sandbox may have open, as
	// far as the engine may give so many. 0: as many as the engine gives.
	OpenFiles int64 `env:"OPEN_FILES" envDefault:"65536"`
	// Swap gives each sandbox as much swap on top of its memory as it has memory,
	// as far as the host has some. Without it there is none.
	Swap bool `env:"SWAP"`
	// Keep is how long a session with create hooks keeps its sandbox, stopped,
	// after a run: until then its next run goes on in it, and create hooks don't
	// run again. 0: no sandbox is kept.
	Keep time.Duration `env:"KEEP" envDefault:"1h"`
	// KeepMax is how many sandboxes are kept at a time; above it, and below
	// STROMBOLI_DISK_RESERVE, the longest kept are discarded.
	KeepMax int `env:"KEEP_MAX" envDefault:"32"`
}

// Runs is how many and how long.
type Runs struct {
	// Max is how many runs may be active at once; 0 means by free memory and
	// at most four per CPU.
	Max int `env:"MAX"`
	// BackgroundWait is how long a run whose agent has answered waits for
	// tasks that it left in the background, before it ends them.
	BackgroundWait time.Duration `env:"BACKGROUND_WAIT" envDefault:"60s"`
}

// Jobs is how long finished runs are remembered.
type Jobs struct {
	// CleanupTTL is the age at which the rows and events of finished runs are
	// deleted. Sessions stay.
	CleanupTTL time.Duration `env:"CLEANUP_TTL" envDefault:"24h"`
	// CleanupInterval is how often that is done, and every other sweep.
	CleanupInterval time.Duration `env:"CLEANUP_INTERVAL" envDefault:"1h"`
}

// Egress is what sandboxes may reach.
type Egress struct {
	// Allow exempts targets from the rule that only public addresses may be
	// reached, comma-separated: name:port, ip:port, [ip6]:port, cidr:port.
	Allow []string `env:"ALLOW" reload:"true"`
	// Mode is what runs reach that don't say, and the most that one may ask for:
	// open (every public host), allowlist (the hosts of Allowlist), model (the
	// model's API alone) or none.
	Mode string `env:"MODE" envDefault:"open" reload:"true"`
	// Allowlist are the hosts of the mode allowlist, for runs that name none
	// themselves, comma-separated: github.com, *.pypi.org:443, 192.0.2.0/24.
	// Where Mode is allowlist a run can't name others.
	Allowlist []string `env:"ALLOWLIST" reload:"true"`
	// Deny are hosts that no run reaches, comma-separated, as for Allowlist.
	Deny []string `env:"DENY" reload:"true"`
	// Bridge lets runs ask for the network mode bridge, which is neither
	// filtered nor recorded.
	Bridge bool `env:"BRIDGE" reload:"true"`
	// ProxyHosts are hosts that runs reach through this host's own proxy
	// (HTTPS_PROXY), comma-separated names, never addresses: github.com,
	// *.pypi.org. The proxy resolves them, so that their addresses can't be
	// checked.
	ProxyHosts []string `env:"PROXY_HOSTS" reload:"true"`
	// External: another service keeps `stromboli egress --stay --dir …` running,
	// such as a second container beside the server's. The server waits for it and
	// never ends it.
	External bool `env:"EXTERNAL"`
}

// Secrets is how callers' secrets are kept.
type Secrets struct {
	// KeyFile is the file with the keys that seal them, mode 0600; it is made
	// where it is missing. Default: secrets.key in the data directory. Without
	// it the secrets can't be opened: keep a copy apart from the database's.
	KeyFile string `env:"KEY_FILE"`
	// EngineNames are the container engine's own secrets that runs may name as
	// engine:NAME, comma-separated patterns with * for any characters: ci-* is for
	// runs of the tenant default, team-a/ci-* for those of the tenant team-a,
	// */shared for all tenants. Empty: none.
	EngineNames []string `env:"ENGINE_NAMES" reload:"true"`
}

// Log is the server's own log, on standard error.
type Log struct {
	// Format: text or json.
	Format string `env:"FORMAT" envDefault:"text"`
	// Level: debug, info, warn or error.
	Level string `env:"LEVEL" envDefault:"info" reload:"true"`
	// Levels are levels of parts that differ from Level, comma-separated:
	// runner=debug,engine=warn. The parts are api, archive, auth, egress,
	// engine, image, model, retention, runner, sandbox, server and webhook.
	Levels []string `env:"LEVELS" reload:"true"`
	// Access writes one line for each request, at the level info, for health
	// and metrics at debug.
	Access bool `env:"ACCESS" envDefault:"true"`
}

// Compose is what compose environments of runs may do.
type Compose struct {
	// AllowPrivileged would permit privileged services.
	AllowPrivileged bool `env:"ALLOW_PRIVILEGED" noeffect:"this version has no compose environments: runs that ask for one are refused"`
	// AllowHostNetwork would permit services on the host's network.
	AllowHostNetwork bool `env:"ALLOW_HOST_NETWORK" noeffect:"this version has no compose environments: runs that ask for one are refused"`
	// AllowHostVolumes would permit services that mount the host's directories.
	AllowHostVolumes bool `env:"ALLOW_HOST_VOLUMES" noeffect:"this version has no compose environments: runs that ask for one are refused"`
	// BuildTimeout would bound the build of a stack's images.
	BuildTimeout time.Duration `env:"BUILD_TIMEOUT" noeffect:"this version has no compose environments: runs that ask for one are refused"`
	// HealthTimeout would bound the wait for a stack to be healthy.
	HealthTimeout time.Duration `env:"HEALTH_TIMEOUT" noeffect:"this version has no compose environments: runs that ask for one are refused"`
	// StackTTL would be the life of a stack that nobody uses.
	StackTTL time.Duration `env:"STACK_TTL" noeffect:"this version has no compose environments: runs that ask for one are refused"`
}
