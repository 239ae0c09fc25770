package podman

import (
	"bufio"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/engine"
)

const (
	hintUIDMap = "install the package uidmap, which has newuidmap and newgidmap"
	hintSubID  = "the user has no ranges of subordinate ids: " +
		"`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`, then `podman system migrate`"
)

// hostFacts is what decides how a service of our own must be configured.
type hostFacts struct {
	Root        bool
	CgroupV2    bool // the unified hierarchy alone; hybrid counts as v1
	Systemd     bool // it is this machine's init
	SysResource bool // this process may raise resource limits
	Runc        bool
	Nofile      uint64 // hard limits of this process, never "infinity"
	Nproc       uint64
}

// mostRlimit stands for "infinity", which configuration files can't say
// portably: the kernel's own maximum of processes.
const mostRlimit = 4_194_304

func readHost() hostFacts {
	f := hostFacts{
		Root:   os.Geteuid() == 0,
		Nofile: hardLimit(unix.RLIMIT_NOFILE),
		Nproc:  min(hardLimit(unix.RLIMIT_NPROC), pidMax()),
	}
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil {
		f.CgroupV2 = st.Type == unix.CGROUP2_SUPER_MAGIC
	}
	if fi, err := os.Stat("/run/systemd/system"); err == nil {
		f.Systemd = fi.IsDir()
	}
	f.SysResource = hasCapability(unix.CAP_SYS_RESOURCE)
	_, err := lookPath("runc", os.Getenv("PATH"))
	f.Runc = err == nil
	return f
}

// pidMax is the kernel's highest process id. Podman lowers its own limit of
// processes to it, so nothing above it can be given to a container.
func pidMax() uint64 {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return mostRlimit
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return mostRlimit
	}
	return n
}

// limitsOf lowers the facts' limits to those of another process, the service
// that will start the containers.
func (f *hostFacts) limitsOf(pid int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		for name, limit := range map[string]*uint64{"Max processes": &f.Nproc, "Max open files": &f.Nofile} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if fields := strings.Fields(rest); len(fields) > 1 {
					if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
						*limit = min(*limit, n)
					}
				}
			}
		}
	}
}

func hardLimit(which int) uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(which, &l) != nil {
		return 1024
	}
	return min(l.Max, mostRlimit)
}

func hasCapability(bit int) bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && mask&(1<<bit) != 0
		}
	}
	return false
}

// lookPath finds a command where system commands are, also when PATH is that
// of an ordinary user: runc and the network helpers are in sbin.
func lookPath(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(servicePath(path)) {
		file := filepath.Join(dir, name)
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && unix.Access(file, unix.X_OK) == nil && filepath.IsAbs(file) {
			return file, nil
		}
	}
	return "", &engine.Error{Op: "look for " + name, Message: "not installed", Kind: engine.ErrUnavailable}
}

// servicePath adds the system's directories to a PATH.
func servicePath(path string) string {
	dirs := filepath.SplitList(path)
	for _, d := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		found := false
		for _, have := range dirs {
			found = found || have == d
		}
		if !found {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, string(os.PathListSeparator))
}

// checkRootless says what an ordinary user lacks for containers, before Podman
// says it in its own way.
func checkRootless(env map[string]string) error {
	const op = "prepare rootless containers"
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if _, err := lookPath(name, env["PATH"]); err != nil {
			return unavailable(op, name+" is not installed; "+hintUIDMap)
		}
	}
	for _, file := range []string{"/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/unprivileged_userns_clone"} {
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == "0" {
			return unavailable(op, "user namespaces are switched off on this machine ("+file+" is 0)")
		}
	}
	if subIDsElsewhere() {
		return nil
	}
	names := []string{strconv.Itoa(os.Geteuid())}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if !hasSubIDs(file, names) {
			return unavailable(op, strings.ReplaceAll(hintSubID, "USER", names[len(names)-1])+" ("+file+")")
		}
	}
	return nil
}

// subIDsElsewhere reports whether a directory service holds the ranges.
func subIDsElsewhere() bool {
	data, err := os.ReadFile("/etc/nsswitch.conf")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "subid:"); ok && strings.TrimSpace(v) != "files" {
			return true
		}
	}
	return false
}

func hasSubIDs(file string, names []string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) != 3 {
			continue
		}
		n, err := strconv.Atoi(fields[2])
		for _, name := range names {
			if fields[0] == name && err == nil && n > 0 {
				return true
			}
		}
	}
	return false
}

func parseEnviron(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	return env
}
