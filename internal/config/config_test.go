package config

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func load(t *testing.T, environ ...string) *Config {
	t.Helper()
	c, err := Load(append([]string{"HOME=/home/u"}, environ...))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaults(t *testing.T) {
	got := load(t)
	want := &Config{
		DataDir: "/home/u/.local/share/stromboli", CacheDir: "/home/u/.cache/stromboli",
		Server:    Server{Address: "127.0.0.1:8080", SocketMode: "0600", MaxBody: 10 << 20, MaxConnections: 4096, MaxPerAddress: 1024},
		Agent:     Agent{CredentialsFile: "/home/u/.claude/.credentials.json", WorkdirAutoCreate: true, PullTimeout: 30 * time.Minute, MountClaudeCLI: true, AutoPullCLI: true},
		Resources: Resources{Memory: "512m", CPUs: "1", Disk: "10g", Timeout: 30 * time.Minute},
		JWT:       JWT{Expiry: 24 * time.Hour, RefreshExpiry: 168 * time.Hour},
		RateLimit: RateLimit{RPS: 10, Burst: 20},
		Sandbox: Sandbox{
			UserNS: "auto", Seccomp: "default", SyscallFilter: true, ReadOnlyRoot: true, MaskedPaths: true,
			IPCNS: "private", UTSNS: "private", CgroupNS: "private", PidsLimit: 1024, OpenFiles: 65536, Keep: time.Hour, KeepMax: 32,
		},
		Runs:    Runs{BackgroundWait: time.Minute},
		Jobs:    got.Jobs,
		Audit:   Audit{Enabled: true, MaxFileSize: 32 << 20, MaxFileAge: 24 * time.Hour},
		Webhook: Webhook{Timeout: 15 * time.Second, CleanupTTL: 72 * time.Hour},
		Retention: Retention{
			Events: time.Hour, Runs: 24 * time.Hour, Deliveries: 72 * time.Hour, IdempotencyKeys: 24 * time.Hour,
			CLIVersions: 168 * time.Hour,
		},
		Egress:   Egress{Mode: "open"},
		Log:      Log{Format: "text", Level: "info", Access: true},
		Metrics:  Metrics{Enabled: true, Address: "127.0.0.1:9090"},
		Tracing:  Tracing{Endpoint: "localhost:4317", ServiceName: "stromboli", SampleRatio: 1, Agents: true},
		QueueMax: 1000, QueueStuckAfter: 15 * time.Minute, OrphanTimeout: 10 * time.Minute,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{})); diff != "" {
		t.Error(diff)
	}
}

// Every variable reaches its field: each is set to something that is not its
// default, and then no field has its default any more.
func TestEveryVariable(t *testing.T) {
	set := map[string]string{
		"STROMBOLI_DATA_DIR": "/d", "STROMBOLI_DATA_HOST_DIR": "/hd", "STROMBOLI_AGENT_SESSIONS_DIR": "/sd",
		"STROMBOLI_AGENT_SESSIONS_HOST_DIR": "/hs", "STROMBOLI_EGRESS_EXTERNAL": "true", "STROMBOLI_CACHE_DIR": "/c", "CONTAINER_HOST": "unix:///s",
		"STROMBOLI_SERVER_ADDRESS": "0.0.0.0:1", "STROMBOLI_SERVER_ALLOWED_HOSTS": "a,b", "STROMBOLI_SERVER_MAX_BODY": "2048",
		"STROMBOLI_AUTH_ALLOW_PUBLIC": "true", "STROMBOLI_AUTH_ENABLED": "true", "STROMBOLI_AUTH_START_CLOSED": "true", "STROMBOLI_API_TOKENS_FILE": "/t",
		"STROMBOLI_JWT_EXPIRY": "1h", "STROMBOLI_JWT_REFRESH_EXPIRY": "2h",
		"STROMBOLI_RETENTION_EVENTS": "2h", "STROMBOLI_RETENTION_ARCHIVES": "3h", "STROMBOLI_RETENTION_RUNS": "4h", "STROMBOLI_RETENTION_SESSIONS": "5h",
		"STROMBOLI_RETENTION_DELIVERIES": "6h", "STROMBOLI_RETENTION_IDEMPOTENCY_KEYS": "7h", "STROMBOLI_RETENTION_CLI_VERSIONS": "8h",
		"STROMBOLI_RETENTION_IMAGES": "9h", "STROMBOLI_RETENTION_AUDIT": "10h", "STROMBOLI_ARCHIVE_URL": "s3://b",
		"STROMBOLI_RATE_LIMIT_ENABLED": "true", "STROMBOLI_RATE_LIMIT_RPS": "1", "STROMBOLI_RATE_LIMIT_BURST": "2", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES": "10.0.0.0/8",
		"STROMBOLI_AGENT_IMAGE": "i", "STROMBOLI_AGENT_ALLOWED_VOLUMES": "/a,/b",
		"STROMBOLI_AGENT_TIMEZONE": "local", "STROMBOLI_AGENT_SECRETS_FILE": "/s", "STROMBOLI_AGENT_CREDENTIALS_FILE": "/f", "STROMBOLI_AGENT_TENANT_CREDENTIALS_FILE": "/t", "STROMBOLI_AGENT_TENANT_CREDENTIALS_FALLBACK": "true", "STROMBOLI_RESOURCES_MEMORY": "1g",
		"STROMBOLI_RESOURCES_CPUS": "2", "STROMBOLI_RESOURCES_TIMEOUT": "1m", "STROMBOLI_RESOURCES_ALLOW_UNENFORCED": "true",
		"STROMBOLI_RUNS_MAX": "3", "STROMBOLI_RUNS_BACKGROUND_WAIT": "2s", "STROMBOLI_JOBS_CLEANUP_TTL": "2h",
		"STROMBOLI_JOBS_CLEANUP_INTERVAL": "2m", "STROMBOLI_EGRESS_ALLOW": "h:1,h:2", "STROMBOLI_EGRESS_MODE": "model",
		"STROMBOLI_EGRESS_ALLOWLIST": "a", "STROMBOLI_EGRESS_DENY": "b", "STROMBOLI_EGRESS_BRIDGE": "true", "STROMBOLI_EGRESS_PROXY_HOSTS": "p", "STROMBOLI_SECRETS_KEY_FILE": "/k", "STROMBOLI_SECRETS_ENGINE_NAMES": "ci-*", "STROMBOLI_LOG_FORMAT": "json",
		"STROMBOLI_LOG_LEVEL": "debug", "STROMBOLI_QUEUE_MAX": "5", "STROMBOLI_QUEUE_STUCK_AFTER": "1m", "STROMBOLI_ORPHAN_TIMEOUT": "7m",
		"STROMBOLI_WEBHOOK_ALLOW": "10.0.0.0/8", "STROMBOLI_WEBHOOK_TIMEOUT": "9s", "STROMBOLI_WEBHOOK_CLEANUP_TTL": "3h",
		"STROMBOLI_SANDBOX_USERNS": "none", "STROMBOLI_SANDBOX_KEEP": "2h", "STROMBOLI_SANDBOX_KEEP_MAX": "5", "STROMBOLI_SANDBOX_SECCOMP": "unconfined", "STROMBOLI_SANDBOX_SYSCALL_FILTER": "false",
		"STROMBOLI_SANDBOX_READ_ONLY_ROOT": "false", "STROMBOLI_SANDBOX_MASKED_PATHS": "false", "STROMBOLI_SANDBOX_IPCNS": "host",
		"STROMBOLI_SANDBOX_UTSNS": "host", "STROMBOLI_SANDBOX_CGROUPNS": "host", "STROMBOLI_SANDBOX_PIDS_LIMIT": "0",
		"STROMBOLI_SANDBOX_OPEN_FILES": "0", "STROMBOLI_SANDBOX_SWAP": "true",
		"STROMBOLI_AGENT_ALLOW_ALL_VOLUMES": "true", "STROMBOLI_AGENT_WORKDIR_AUTO_CREATE": "false",
		"STROMBOLI_AGENT_ROOT_HOOKS": "true", "STROMBOLI_RESOURCES_MAX_MEMORY": "3g", "STROMBOLI_RESOURCES_MAX_CPUS": "4",
		"STROMBOLI_RESOURCES_MAX_CPU_SHARES": "512", "STROMBOLI_RESOURCES_MAX_TIMEOUT": "2h",
		"STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS": "a", "STROMBOLI_AGENT_INSECURE_REGISTRIES": "r:1", "STROMBOLI_AGENT_PULL_TIMEOUT": "3m",
		"STROMBOLI_RESOURCES_DISK": "1g", "STROMBOLI_DISK_RESERVE": "2g",
		"STROMBOLI_LOG_LEVELS": "runner=debug", "STROMBOLI_LOG_ACCESS": "false", "STROMBOLI_METRICS_ENABLED": "false", "STROMBOLI_METRICS_ADDRESS": "127.0.0.1:0",
		"STROMBOLI_API_TOKENS": "x", "STROMBOLI_JWT_SECRET": "x", "STROMBOLI_WEBHOOK_SIGNING_SECRET": "x",
		"STROMBOLI_TLS_CERT": "/c", "STROMBOLI_TLS_KEY": "/k", "STROMBOLI_SERVER_SOCKET_MODE": "0660",
		"STROMBOLI_AGENT_IMAGE_TAG": "t", "STROMBOLI_AGENT_MOUNT_CLAUDE_CLI": "false", "STROMBOLI_AGENT_CLI_IMAGE": "i", "STROMBOLI_AGENT_CLI_IMAGE_TAG": "t",
		"STROMBOLI_AGENT_AUTO_PULL_CLI": "false", "STROMBOLI_COMPOSE_ALLOW_PRIVILEGED": "true", "STROMBOLI_COMPOSE_ALLOW_HOST_NETWORK": "true",
		"STROMBOLI_COMPOSE_ALLOW_HOST_VOLUMES": "true", "STROMBOLI_COMPOSE_BUILD_TIMEOUT": "1m", "STROMBOLI_COMPOSE_HEALTH_TIMEOUT": "1m", "STROMBOLI_COMPOSE_STACK_TTL": "2m",
		"STROMBOLI_AUDIT_ENABLED": "false", "STROMBOLI_AUDIT_FILE": "/af", "STROMBOLI_AUDIT_MAX_FILE_SIZE": "5000", "STROMBOLI_AUDIT_MAX_FILE_AGE": "2h",
		"STROMBOLI_TRACING_ENABLED": "true", "STROMBOLI_TRACING_ENDPOINT": "h:1", "STROMBOLI_TRACING_PROTOCOL": "http", "STROMBOLI_TRACING_SERVICE_NAME": "s",
		"STROMBOLI_TRACING_INSECURE": "true", "STROMBOLI_TRACING_SAMPLE_RATIO": "0.5", "STROMBOLI_TRACING_AGENTS": "false",
		"STROMBOLI_SERVER_MAX_CONNECTIONS": "9", "STROMBOLI_SERVER_MAX_CONNECTIONS_PER_ADDRESS": "8",
	}
	var environ []string
	for name, value := range set {
		environ = append(environ, name+"="+value)
	}
	got, plain := leaves(reflect.ValueOf(*load(t, environ...))), leaves(reflect.ValueOf(*load(t)))
	if len(set) != len(got) {
		t.Errorf("%d variables, %d fields", len(set), len(got))
	}
	for name, value := range got {
		if reflect.DeepEqual(value, plain[name]) {
			t.Errorf("%s is %v, its default", name, value)
		}
	}
	if c := load(t, environ...); !slices.Equal(c.Agent.AllowedVolumes, []string{"/a", "/b"}) || c.Runs.Max != 3 || c.OrphanTimeout != 7*time.Minute {
		t.Errorf("%+v", c)
	}
}

// leaves lists the exported fields that hold values.
func leaves(v reflect.Value) map[string]any {
	out := make(map[string]any)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch {
		case !f.IsExported():
		case f.Type.Kind() == reflect.Struct:
			for name, value := range leaves(v.Field(i)) {
				out[f.Name+"."+name] = value
			}
		default:
			out[f.Name] = v.Field(i).Interface()
		}
	}
	return out
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ set, names string }{
		{"STROMBOLI_RESOURCES_MEMROY=1g", "STROMBOLI_RESOURCES_MEMROY"},
		{"STROMBOLI_NOTHING=", "STROMBOLI_NOTHING"},
		{"STROMBOLI_SERVER_ADDRESS=8080", "STROMBOLI_SERVER_ADDRESS"},
		{"STROMBOLI_SERVER_ADDRESS=", ""}, // unset
		{"STROMBOLI_SERVER_ADDRESS=unix:///run/s.sock", ""},
		{"STROMBOLI_SERVER_ADDRESS=unix://s.sock", "STROMBOLI_SERVER_ADDRESS"},
		{"STROMBOLI_SERVER_ADDRESS=unix:///run/", "STROMBOLI_SERVER_ADDRESS"},
		{"STROMBOLI_SERVER_SOCKET_MODE=0999", "STROMBOLI_SERVER_SOCKET_MODE"},
		{"STROMBOLI_SERVER_SOCKET_MODE=7777", "STROMBOLI_SERVER_SOCKET_MODE"},
		{"STROMBOLI_TLS_CERT=/c", "STROMBOLI_TLS_KEY"},
		{"STROMBOLI_TLS_KEY=/k", "STROMBOLI_TLS_CERT"},
		{"STROMBOLI_SERVER_MAX_BODY=1", "STROMBOLI_SERVER_MAX_BODY"},
		{"STROMBOLI_SERVER_MAX_BODY=10m", "STROMBOLI_SERVER_MAX_BODY"},
		{"STROMBOLI_AGENT_INSECURE_REGISTRIES=http://x", "STROMBOLI_AGENT_INSECURE_REGISTRIES"},
		{"STROMBOLI_AGENT_PULL_TIMEOUT=1ms", "STROMBOLI_AGENT_PULL_TIMEOUT"},
		{"STROMBOLI_AGENT_ALLOWED_VOLUMES=data", "STROMBOLI_AGENT_ALLOWED_VOLUMES"},
		{"STROMBOLI_AGENT_ALLOWED_VOLUMES=/a,", "STROMBOLI_AGENT_ALLOWED_VOLUMES"},
		{"STROMBOLI_QUEUE_MAX=-1", "STROMBOLI_QUEUE_MAX"},
		{"STROMBOLI_QUEUE_MAX=many", "STROMBOLI_QUEUE_MAX"},
		{"STROMBOLI_QUEUE_STUCK_AFTER=0s", "STROMBOLI_QUEUE_STUCK_AFTER"},
		{"STROMBOLI_RUNS_MAX=-1", "STROMBOLI_RUNS_MAX"},
		{"STROMBOLI_RUNS_BACKGROUND_WAIT=-1s", "STROMBOLI_RUNS_BACKGROUND_WAIT"},
		{"STROMBOLI_RESOURCES_TIMEOUT=0", "STROMBOLI_RESOURCES_TIMEOUT"},
		{"STROMBOLI_TRACING_SAMPLE_RATIO=NaN", "STROMBOLI_TRACING_SAMPLE_RATIO"},
		{"STROMBOLI_RESOURCES_ALLOW_UNENFORCED=perhaps", "STROMBOLI_RESOURCES_ALLOW_UNENFORCED"},
		{"STROMBOLI_ORPHAN_TIMEOUT=1ms", "STROMBOLI_ORPHAN_TIMEOUT"},
		{"STROMBOLI_JOBS_CLEANUP_TTL=1s", "STROMBOLI_JOBS_CLEANUP_TTL"},
		{"STROMBOLI_SANDBOX_USERNS=host", "STROMBOLI_SANDBOX_USERNS"},
		{"STROMBOLI_SANDBOX_SECCOMP=none", "STROMBOLI_SANDBOX_SECCOMP"},
		{"STROMBOLI_SANDBOX_SYSCALL_FILTER=some", "STROMBOLI_SANDBOX_SYSCALL_FILTER"},
		{"STROMBOLI_SANDBOX_IPCNS=shareable", "STROMBOLI_SANDBOX_IPCNS"},
		{"STROMBOLI_SANDBOX_UTSNS=none", "STROMBOLI_SANDBOX_UTSNS"},
		{"STROMBOLI_SANDBOX_CGROUPNS=none", "STROMBOLI_SANDBOX_CGROUPNS"},
		{"STROMBOLI_SANDBOX_PIDS_LIMIT=10", "STROMBOLI_SANDBOX_PIDS_LIMIT"},
		{"STROMBOLI_SANDBOX_PIDS_LIMIT=-1", "STROMBOLI_SANDBOX_PIDS_LIMIT"},
		{"STROMBOLI_SANDBOX_OPEN_FILES=10", "STROMBOLI_SANDBOX_OPEN_FILES"},
		{"STROMBOLI_SANDBOX_PIDNS=host", "STROMBOLI_SANDBOX_PIDNS"},
		{"STROMBOLI_SANDBOX_NO_NEW_PRIVILEGES=false", "STROMBOLI_SANDBOX_NO_NEW_PRIVILEGES"},
		{"STROMBOLI_SANDBOX_KEEP=-1s", "STROMBOLI_SANDBOX_KEEP"},
		{"STROMBOLI_SANDBOX_KEEP_MAX=-1", "STROMBOLI_SANDBOX_KEEP_MAX"},
		{"STROMBOLI_LOG_FORMAT=xml", "STROMBOLI_LOG_FORMAT"},
		{"STROMBOLI_LOG_LEVEL=loud", "STROMBOLI_LOG_LEVEL"},
	} {
		_, err := Load([]string{"HOME=/h", c.set})
		if c.names == "" {
			if err != nil {
				t.Errorf("%s: %v", c.set, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: error %v doesn't name %s", c.set, err, c.names)
		}
	}
}

func TestLoopbackUnlessAllowed(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "127.0.0.1:0": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "10.0.0.1:1": false, "example.com:1": false,
		"127.0.0.1.example.com:1": false, "localhost.example.com:1": false, "2130706433:1": false,
	} {
		set := "STROMBOLI_SERVER_ADDRESS=" + address
		if _, err := Load([]string{"HOME=/h", set}); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
		if _, err := Load([]string{"HOME=/h", set, "STROMBOLI_AUTH_ALLOW_PUBLIC=true"}); err != nil {
			t.Errorf("%s, allowed: %v", address, err)
		}
	}
}

func TestDirectories(t *testing.T) {
	if c := load(t, "XDG_DATA_HOME=/x", "XDG_CACHE_HOME=/y"); c.DataDir != "/x/stromboli" || c.CacheDir != "/y/stromboli" {
		t.Errorf("XDG: %s, %s", c.DataDir, c.CacheDir)
	}
	if c := load(t, "XDG_DATA_HOME=relative"); c.DataDir != "/home/u/.local/share/stromboli" {
		t.Errorf("a relative XDG directory counts: %s", c.DataDir)
	}
	t.Chdir(t.TempDir())
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	if c := load(t, "STROMBOLI_DATA_DIR=d"); c.DataDir != filepath.Join(here, "d") {
		t.Errorf("a relative directory: %s", c.DataDir)
	}
	if _, err := Load(nil); err == nil || !strings.Contains(err.Error(), "STROMBOLI_DATA_DIR") {
		t.Errorf("without a home: %v", err)
	}
	if _, err := Load([]string{"STROMBOLI_DATA_DIR=/d", "STROMBOLI_CACHE_DIR=/c"}); err != nil {
		t.Errorf("without a home and with directories: %v", err)
	}
}

func TestRegistryAuthFiles(t *testing.T) {
	for _, tt := range []struct {
		environ []string
		want    []string
	}{
		{[]string{"HOME=/h", "REGISTRY_AUTH_FILE=/f"}, []string{"/f"}},
		{[]string{"HOME=/h", "XDG_RUNTIME_DIR=/r"}, []string{"/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"}},
		{[]string{"HOME=/h", "XDG_CONFIG_HOME=/c", "DOCKER_CONFIG=/d"}, []string{"/run/containers/7/auth.json", "/c/containers/auth.json", "/d/config.json"}},
		{nil, []string{"/run/containers/7/auth.json"}},
	} {
		if got := RegistryAuthFiles(tt.environ, 7); !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v", tt.environ, got)
		}
	}
}

// What Kubernetes puts into the environment for a service that is named for this
// program is no setting of it.
func TestServiceVariables(t *testing.T) {
	for _, name := range []string{"PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8080_TCP", "PORT_8080_TCP_ADDR"} {
		if _, err := Load([]string{"HOME=/h", prefix + name + "=tcp://10.0.0.1:8080"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"SERVICES", "PORTS", "PORT_X", "SERVER_PORT"} {
		if _, err := Load([]string{"HOME=/h", prefix + name + "=1"}); err == nil {
			t.Errorf("%s is a setting", name)
		}
	}
}
