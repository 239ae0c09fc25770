// Package config is the server's configuration: one struct whose comments are
// the manual. Values come from STROMBOLI_ variables of the environment over
// the defaults given here. It reads no global state: the environment is
// handed in.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// Config is everything that can be set. Secrets are not part of it; see
// LoadCredential and LoadAuth.
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
	Log       Log       `envPrefix:"STROMBOLI_LOG_"`
	Metrics   Metrics   `envPrefix:"STROMBOLI_METRICS_"`

	// APITokensFile is a JSON file with named API tokens, their tenants and
	// scopes; mode 0600. See docs/AUTHENTICATION.md.
	APITokensFile string `env:"STROMBOLI_API_TOKENS_FILE"`

	// QueueMax is how many runs may wait for a free slot; one more is
	// answered 429.
	QueueMax int `env:"STROMBOLI_QUEUE_MAX" envDefault:"1000"`
	// DiskReserve is the free space, as a size, below which no new run is
	// started: pending ones wait, and new ones are answered 503. Default: a
	// fiftieth of the file system, at most 1g. 0: none.
	DiskReserve string `env:"STROMBOLI_DISK_RESERVE"`
	// OrphanTimeout is how long an agent goes on while no server is there.
	OrphanTimeout time.Duration `env:"STROMBOLI_ORPHAN_TIMEOUT" envDefault:"10m"`

	home string
}

// Server is the HTTP side.
type Server struct {
	// Address is host:port to listen on. Default: :8080 with auth. While auth is
	// off 127.0.0.1:8080, and it must be a loopback address, unless
	// STROMBOLI_AUTH_ALLOW_PUBLIC is true.
	Address string `env:"ADDRESS"`
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

// Agent is what runs in the sandboxes.
type Agent struct {
	// Image is the image of runs that name none. Default: the agent image
	// that `stromboli setup --image` makes.
	Image string `env:"IMAGE"`
	// AllowedImagePatterns are the images that runs may use and that may be
	// pulled, comma-separated: ghcr.io/org/*, python:3.*, localhost/**. Names are
	// completed as Docker does; * stands for anything but a slash, ** for
	// anything, and a pattern without a tag means every tag. Empty: every image
	// on this machine may be used, and none is pulled.
	AllowedImagePatterns []string `env:"ALLOWED_IMAGE_PATTERNS"`
	// InsecureRegistries are registries (host or host:port, comma-separated)
	// that are spoken to without TLS, or without checking its certificate. Those
	// on this machine's loopback always are.
	InsecureRegistries []string `env:"INSECURE_REGISTRIES"`
	// PullTimeout is how long the pull of an image may take.
	PullTimeout time.Duration `env:"PULL_TIMEOUT" envDefault:"30m"`
	// AllowedVolumes are the host directories below which volumes may lie,
	// comma-separated. Empty: every volume is refused.
	AllowedVolumes []string `env:"ALLOWED_VOLUMES"`
	// AllowAllVolumes permits every host directory as a volume, save for the
	// server's own files and the engine's socket.
	AllowAllVolumes bool `env:"ALLOW_ALL_VOLUMES"`
	// WorkdirAutoCreate makes a run's working directory where neither a volume
	// nor the image has it; without it such runs are refused.
	WorkdirAutoCreate bool `env:"WORKDIR_AUTO_CREATE" envDefault:"true"`
	// RootHooks runs create hooks as the sandbox's root, so that they can install
	// packages, in sandboxes of a rootful engine that have ids of their own or
	// no volumes. In others they run as the agent.
	RootHooks bool `env:"ROOT_HOOKS"`
	// Timezone is the time zone of agents: a name such as Europe/Paris, or
	// local for this host's. Default: the image's, which is UTC in the agent
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
}

// Resources are the limits of a run that names none.
type Resources struct {
	// Memory is a size such as 512m or 2g; there is no swap on top. 0: no limit.
	Memory string `env:"MEMORY" envDefault:"512m"`
	// CPUs is a decimal number of CPUs. 0: no limit.
	CPUs string `env:"CPUS" envDefault:"1"`
	// Timeout is how long a run may take.
	Timeout time.Duration `env:"TIMEOUT" envDefault:"30m"`
	// MaxMemory, MaxCPUs, MaxCPUShares and MaxTimeout are the most that a run
	// may ask for, in the forms of the request's fields. One that asks for more
	// gets the maximum and a warning. Empty or 0: no maximum.
	MaxMemory    string        `env:"MAX_MEMORY"`
	MaxCPUs      string        `env:"MAX_CPUS"`
	MaxCPUShares int64         `env:"MAX_CPU_SHARES"`
	MaxTimeout   time.Duration `env:"MAX_TIMEOUT"`
	// Disk is what a sandbox may take of the disk in its home, its workspace and
	// /tmp together, as a size; volumes don't count. 0: as much as there is.
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
	// CleanupInterval is how often that is done.
	CleanupInterval time.Duration `env:"CLEANUP_INTERVAL" envDefault:"1h"`
}

// Egress is what sandboxes may reach.
type Egress struct {
	// Allow exempts host:port targets from the rule that only public
	// addresses may be reached, comma-separated.
	Allow []string `env:"ALLOW"`
	// Mode is what runs reach that don't say, and the most that one may ask for:
	// open (every public host), allowlist (the hosts of Allowlist), model (the
	// model's API alone) or none.
	Mode string `env:"MODE" envDefault:"open"`
	// Allowlist are the hosts of the mode allowlist, for runs that name none
	// themselves, comma-separated: github.com, *.pypi.org:443, 192.0.2.0/24.
	// Where Mode is allowlist a run can't name others.
	Allowlist []string `env:"ALLOWLIST"`
	// Deny are hosts that no run reaches, comma-separated, as for Allowlist.
	Deny []string `env:"DENY"`
	// Bridge lets runs ask for the network mode bridge, which is neither
	// filtered nor recorded.
	Bridge bool `env:"BRIDGE"`
	// ProxyHosts are hosts that runs reach through this host's own proxy
	// (HTTPS_PROXY), comma-separated names: github.com, *.pypi.org. The proxy
	// resolves them, so that their addresses can't be checked.
	ProxyHosts []string `env:"PROXY_HOSTS"`
	// External: another service starts `stromboli egress`, such as a second
	// container beside the server's. The server waits for it and never ends it.
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
	// runs of the tenant default, team-a/ci-* for those of the tenant team-a.
	// Empty: none.
	EngineNames []string `env:"ENGINE_NAMES"`
}

// Log is the server's own log, on standard error.
type Log struct {
	// Format: text or json.
	Format string `env:"FORMAT" envDefault:"text"`
	// Level: debug, info, warn or error.
	Level string `env:"LEVEL" envDefault:"info"`
	// Levels are levels of parts that differ from Level, comma-separated:
	// runner=debug,engine=warn. The parts are api, auth, egress, engine, image,
	// model, runner, sandbox, server and webhook.
	Levels []string `env:"LEVELS"`
	// Access writes one line for each request, at the level info, for health
	// and metrics at debug.
	Access bool `env:"ACCESS" envDefault:"true"`
}

// Load reads the configuration from environ, "NAME=value" strings as
// os.Environ returns them, and validates it. The error names the variable.
func Load(environ []string) (*Config, error) {
	vars := env.ToMap(environ)
	c := &Config{home: vars["HOME"]}
	if err := env.ParseWithOptions(c, env.Options{Environment: vars}); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := unknown(vars); err != nil {
		return nil, err
	}
	var err error
	if c.DataDir, err = directory("STROMBOLI_DATA_DIR", c.DataDir, vars["XDG_DATA_HOME"], c.home, ".local/share"); err != nil {
		return nil, err
	}
	if err := c.absolute(); err != nil {
		return nil, err
	}
	if c.CacheDir == "" && (c.DataHostDir != "" || c.Agent.SessionsHostDir != "") {
		// The CLI is mounted from there: the engine must see it.
		c.CacheDir = filepath.Join(c.SharedDir(), "cache")
	}
	if c.CacheDir, err = directory("STROMBOLI_CACHE_DIR", c.CacheDir, vars["XDG_CACHE_HOME"], c.home, ".cache"); err != nil {
		return nil, err
	}
	if c.Agent.CredentialsFile == "" && c.home != "" {
		c.Agent.CredentialsFile = filepath.Join(c.home, ".claude", ".credentials.json")
	}
	if c.Server.Address == "" {
		c.Server.Address = "127.0.0.1:8080"
		if c.Auth.Enabled {
			c.Server.Address = ":8080"
		}
	}
	return c, c.validate()
}

func directory(name, set, xdg, home, below string) (string, error) {
	switch {
	case set != "":
		abs, err := filepath.Abs(set)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return abs, nil
	case filepath.IsAbs(xdg):
		return filepath.Join(xdg, "stromboli"), nil
	case home != "":
		return filepath.Join(home, below, "stromboli"), nil
	}
	return "", fmt.Errorf("%s: neither it nor HOME is set", name)
}

func (c *Config) validate() error {
	if _, _, err := net.SplitHostPort(c.Server.Address); err != nil {
		return fmt.Errorf("STROMBOLI_SERVER_ADDRESS: %q is not host:port", c.Server.Address)
	}
	if err := c.validateAuth(); err != nil {
		return err
	}
	for _, r := range c.Agent.InsecureRegistries {
		if r == "" || strings.ContainsAny(r, "/* ") {
			return fmt.Errorf("STROMBOLI_AGENT_INSECURE_REGISTRIES: %q is not host or host:port", r)
		}
	}
	for _, v := range c.Agent.AllowedVolumes {
		if !filepath.IsAbs(v) {
			return fmt.Errorf("STROMBOLI_AGENT_ALLOWED_VOLUMES: %q is not an absolute path", v)
		}
	}
	switch {
	case c.Server.MaxBody < 1024:
		return errors.New("STROMBOLI_SERVER_MAX_BODY: must be at least 1024 bytes")
	case c.Server.MaxConnections < 1:
		return errors.New("STROMBOLI_SERVER_MAX_CONNECTIONS: must be at least 1")
	case c.Server.MaxPerAddress < 1:
		return errors.New("STROMBOLI_SERVER_MAX_CONNECTIONS_PER_ADDRESS: must be at least 1")
	case c.QueueMax < 0:
		return errors.New("STROMBOLI_QUEUE_MAX: must not be negative")
	case c.Agent.PullTimeout < time.Second:
		return errors.New("STROMBOLI_AGENT_PULL_TIMEOUT: must be at least 1s")
	case c.Runs.Max < 0:
		return errors.New("STROMBOLI_RUNS_MAX: must not be negative")
	case c.Runs.BackgroundWait < 0:
		return errors.New("STROMBOLI_RUNS_BACKGROUND_WAIT: must not be negative")
	case c.Resources.Timeout < time.Second:
		return errors.New("STROMBOLI_RESOURCES_TIMEOUT: must be at least 1s")
	case c.Jobs.CleanupTTL < time.Minute:
		return errors.New("STROMBOLI_JOBS_CLEANUP_TTL: must be at least 1m")
	case c.Jobs.CleanupInterval < time.Second:
		return errors.New("STROMBOLI_JOBS_CLEANUP_INTERVAL: must be at least 1s")
	case c.Webhook.Timeout < time.Second || c.Webhook.Timeout > 2*time.Minute:
		return errors.New("STROMBOLI_WEBHOOK_TIMEOUT: must be from 1s to 2m")
	case c.Webhook.CleanupTTL < time.Minute:
		return errors.New("STROMBOLI_WEBHOOK_CLEANUP_TTL: must be at least 1m")
	case c.OrphanTimeout < time.Second:
		return errors.New("STROMBOLI_ORPHAN_TIMEOUT: must be at least 1s")
	case !slices.Contains([]string{"auto", "none"}, c.Sandbox.UserNS):
		return fmt.Errorf("STROMBOLI_SANDBOX_USERNS: %q is neither auto nor none", c.Sandbox.UserNS)
	case !slices.Contains([]string{"default", "unconfined"}, c.Sandbox.Seccomp):
		return fmt.Errorf("STROMBOLI_SANDBOX_SECCOMP: %q is neither default nor unconfined", c.Sandbox.Seccomp)
	case !privateOrHost(c.Sandbox.IPCNS):
		return fmt.Errorf("STROMBOLI_SANDBOX_IPCNS: %q is neither private nor host", c.Sandbox.IPCNS)
	case !privateOrHost(c.Sandbox.UTSNS):
		return fmt.Errorf("STROMBOLI_SANDBOX_UTSNS: %q is neither private nor host", c.Sandbox.UTSNS)
	case !privateOrHost(c.Sandbox.CgroupNS):
		return fmt.Errorf("STROMBOLI_SANDBOX_CGROUPNS: %q is neither private nor host", c.Sandbox.CgroupNS)
	case c.Sandbox.PidsLimit != 0 && c.Sandbox.PidsLimit < minPids:
		return fmt.Errorf("STROMBOLI_SANDBOX_PIDS_LIMIT: must be at least %d, or 0 for no limit", minPids)
	case c.Sandbox.OpenFiles != 0 && c.Sandbox.OpenFiles < minOpenFiles:
		return fmt.Errorf("STROMBOLI_SANDBOX_OPEN_FILES: must be at least %d, or 0 for as many as the engine gives", minOpenFiles)
	}
	if err := c.Metrics.validate(); err != nil {
		return err
	}
	return c.Log.validate()
}

// What the sandbox's own init and the agent's CLI need at least.
const (
	minPids      = 64
	minOpenFiles = 256
)

func privateOrHost(ns string) bool { return ns == "private" || ns == "host" }

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address) // validated
	return host
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// unknown refuses a STROMBOLI_ variable that nothing reads: a misspelt limit
// must not be ignored in silence.
func unknown(vars map[string]string) error {
	params, err := env.GetFieldParams(&Config{})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	known := []string{"STROMBOLI_URL", "STROMBOLI_TOKEN", "STROMBOLI_API_TOKENS", "STROMBOLI_JWT_SECRET", webhookSecretVar, "STROMBOLI_TEST_REQUIRE"}
	for _, p := range params {
		known = append(known, p.Key)
	}
	for name := range vars {
		if strings.HasPrefix(name, "STROMBOLI_") && !slices.Contains(known, name) && !strings.HasPrefix(name, "STROMBOLI_TEST_") {
			return fmt.Errorf("%s: no such setting; docs/CONFIGURATION.md lists them", name)
		}
	}
	return nil
}
