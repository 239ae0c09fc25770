package podman

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// places are the paths of a service of our own.
type places struct {
	dir     string // OpenConfig.Dir
	socket  string
	run     string // what must not outlive a reboot
	store   string
	conf    string // path of containers.conf
	logPath string
	lock    string
	private bool // the store is our own
}

func placesIn(dir string) places {
	return places{
		dir: dir, socket: filepath.Join(dir, "podman.sock"), run: filepath.Join(dir, "run"),
		store: filepath.Join(dir, "store"), conf: filepath.Join(dir, "containers.conf"),
		logPath: filepath.Join(dir, "log"), lock: filepath.Join(dir, "lock"),
	}
}

// maxRunroot is Podman's own limit for the path of a --runroot.
const maxRunroot = 50

// makeRun makes the run directory: below dir where its path is short enough
// for Podman, else in a place that depends on dir and the user only, since a
// store remembers it for good.
func (p *places) makeRun() error {
	if len(p.run) > maxRunroot {
		sum := sha256.Sum256([]byte(p.dir))
		base := "/var/tmp"
		if os.Geteuid() == 0 {
			base = "/run"
		}
		p.run = fmt.Sprintf("%s/stromboli-%d-%s", base, os.Geteuid(), hex.EncodeToString(sum[:5]))
	}
	if err := os.Mkdir(p.run, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// Anyone may have made it first in a shared place.
	var st unix.Stat_t
	if err := unix.Lstat(p.run, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: p.run, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s belongs to someone else or is open to others; remove it", p.run)
	}
	return nil
}

// storeFlags make podman use the store of its own.
func (p places) storeFlags() []string {
	if !p.private {
		return nil
	}
	return []string{"--root", p.store, "--runroot", p.run, "--storage-driver", "overlay"}
}

// defaultSocket is where this user's service listens by convention.
func defaultSocket(f hostFacts, env map[string]string) string {
	if f.Root {
		return "/run/podman/podman.sock"
	}
	dir := runtimeDir(env)
	if dir == "" {
		dir = userRunDir()
	}
	return filepath.Join(dir, "podman", "podman.sock")
}

// runtimeDir is the user's XDG_RUNTIME_DIR, also where the variable is not set
// (cron, su) but the directory is there; "" when there is none.
func runtimeDir(env map[string]string) string {
	for _, dir := range []string{env["XDG_RUNTIME_DIR"], userRunDir()} {
		var st unix.Stat_t
		if dir != "" && unix.Stat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid() {
			return dir
		}
	}
	return ""
}

func userRunDir() string { return "/run/user/" + strconv.Itoa(os.Geteuid()) }

// userStoreUsable reports whether an ordinary user's own store may be used: it
// is, or by the user's configuration will be, an overlay store. It makes no
// store: left to itself Podman 4.3 would make a vfs one, and it would stay one.
func userStoreUsable(ctx context.Context, podman string, env map[string]string, environ []string) bool {
	data := env["XDG_DATA_HOME"]
	if data == "" {
		data = filepath.Join(env["HOME"], ".local", "share")
	}
	conf := env["CONTAINERS_STORAGE_CONF"]
	if conf == "" {
		conf = env["XDG_CONFIG_HOME"]
		if conf == "" {
			conf = filepath.Join(env["HOME"], ".config")
		}
		conf = filepath.Join(conf, "containers", "storage.conf")
	}
	_, storeErr := os.Stat(filepath.Join(data, "containers", "storage", "overlay-images"))
	if storeErr != nil && !wantsOverlay(conf) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, queryLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, podman, "info", "--format", "{{.Store.GraphDriverName}}")
	cmd.Env = environ
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return err == nil && strings.TrimSpace(string(out)) == "overlay"
}

// wantsOverlay reports whether a storage.conf names the overlay driver.
func wantsOverlay(file string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	var conf confFile
	if conf.merge(string(data)) != nil {
		return false
	}
	t := conf.table("storage")
	return t != nil && strings.HasPrefix(strings.Trim(t.values["driver"], " \t"), `"overlay"`)
}

// passedOn are the variables of our environment that a service of our own
// gets. Others may hold credentials.
func passedOn() []string {
	return []string{
		"HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ",
		"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "DBUS_SESSION_BUS_ADDRESS",
		"CONTAINERS_STORAGE_CONF", "CONTAINERS_REGISTRIES_CONF", "CONTAINERS_CONF_OVERRIDE", "REGISTRY_AUTH_FILE",
		"SSL_CERT_FILE", "SSL_CERT_DIR",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
	}
}

// serviceEnv is the environment of a service of our own and of the command
// line beside it.
func serviceEnv(env map[string]string, p places, xdg string) []string {
	list := []string{"PATH=" + servicePath(env["PATH"]), "PODMAN_IGNORE_CGROUPSV1_WARNING=1"}
	if p.conf != "" {
		list = append(list, "CONTAINERS_CONF="+p.conf)
	}
	for _, k := range passedOn() {
		if v, ok := env[k]; ok {
			list = append(list, k+"="+v)
		}
	}
	if xdg != "" {
		list = append(list, "XDG_RUNTIME_DIR="+xdg)
	}
	return list
}

// maxSocketPath is the kernel's limit for a unix socket's path.
const maxSocketPath = 107

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return unavailable("prepare a Podman service", fmt.Sprintf(
			"%s is longer than the %d bytes that the kernel allows for a socket's path; use a shorter data directory", path, maxSocketPath))
	}
	return nil
}
