package setup

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// What a host must have. Podman 4.3 is the oldest that knows keep-id with a
// uid; the kernel's version is that of unprivileged overlay mounts, without
// which a rootless store copies whole images.
const (
	minPodman      = "4.3"
	minKernel      = "4.18"
	overlayKernel  = "5.13"
	wantSubIDs     = 65536
	minFiles       = 1024
	wantFiles      = 8192
	wantInotify    = 1024
	fullBytes      = 100 << 20
	lowBytes       = 2 << 30
	lowInodes      = 10_000
	expiresSoon    = 24 * time.Hour
	setupTokenHint = "for a server use the token that `claude setup-token` makes: it lasts a year (CLAUDE_CODE_OAUTH_TOKEN, or a file named by STROMBOLI_AGENT_SECRETS_FILE)"
)

// checkSocket tells how the engine is reached.
func (c Checkup) checkSocket(err error) Finding {
	const name = "engine"
	remote := !strings.HasPrefix(c.Address, "unix://") && c.Address != ""
	switch {
	case remote:
		return failed(name, c.Address+" is an engine on another machine or kernel",
			"sandboxes need this kernel: run the server where the engine is (with podman machine: `podman machine ssh`, and start it inside), and set CONTAINER_HOST to unix:///path/to/podman.sock")
	case err != nil && c.Address != "":
		return passing(failed(name, err.Error(),
			"start the service at CONTAINER_HOST (`systemctl --user start podman.socket`, or `podman system service -t 0 "+c.Address+"`), or unset CONTAINER_HOST and the server starts one of its own"))
	case err != nil:
		return passing(failed(name, err.Error(), "install podman (4.3 or newer), then try again; or set CONTAINER_HOST to a running service"))
	}
	return ok(name, "answers at "+c.Socket)
}

func checkVersion(info engine.Info) Finding {
	const name = "engine version"
	found := info.Name + " " + info.Version
	if less(info.Version, minPodman) {
		return failed(name, found, "podman "+minPodman+" or newer is needed: upgrade it")
	}
	return ok(name, found)
}

// checkSameKernel refuses an engine in a virtual machine or elsewhere: mounts
// and sockets don't cross kernels.
func checkSameKernel(info engine.Info, h Host) Finding {
	const name = "engine's kernel"
	if info.OS != "" && info.OS != runtime.GOOS || info.Kernel != "" && h.Kernel != "" && info.Kernel != h.Kernel {
		return failed(name, fmt.Sprintf("the engine runs on another kernel (%s %s, here %s %s)", info.OS, info.Kernel, runtime.GOOS, h.Kernel),
			"run the server where the engine is: with podman machine, `podman machine ssh`, and start it inside")
	}
	return ok(name, "the same as the server's")
}

func checkKernel(h Host) Finding {
	const name = "kernel"
	switch {
	case h.Kernel == "":
		return warning(name, "its release can't be read", "mount /proc")
	case less(h.Kernel, minKernel):
		return failed(name, "Linux "+h.Kernel, "Linux "+minKernel+" or newer is needed: upgrade the kernel")
	case less(h.Kernel, overlayKernel) && h.UID != 0:
		return warning(name, "Linux "+h.Kernel, "before "+overlayKernel+" an ordinary user has no overlay mounts: install fuse-overlayfs, or upgrade the kernel")
	}
	return ok(name, "Linux "+h.Kernel)
}

func checkCgroups(info engine.Info, h Host, allowed bool) Finding {
	const name = "cgroups"
	mode := "v" + strconv.Itoa(info.CgroupVersion)
	if info.CgroupVersion == 1 && h.Hybrid {
		mode = "hybrid (v1 controllers)"
	}
	var missing []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(info.Controllers, c) {
			missing = append(missing, c)
		}
	}
	found := mode + ", controllers " + strings.Join(info.Controllers, " ")
	const permit = "; or set STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true to run without limits"
	judge := failed
	if allowed {
		judge = warning
	}
	switch {
	case info.Rootless && info.CgroupVersion == 1:
		return judge(name, mode+": an ordinary user's sandboxes get no memory, cpu and pids limits",
			"boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1), or use a rootful engine"+permit)
	case len(missing) > 0 && info.Rootless:
		return judge(name, found+"; missing: "+strings.Join(missing, " "),
			"delegate them: Delegate=cpu memory pids in /etc/systemd/system/user@.service.d/delegate.conf, then log in again"+permit)
	case len(missing) > 0:
		return judge(name, found+"; missing: "+strings.Join(missing, " "), "enable the controllers in the kernel's command line"+permit)
	case !info.LimitsSwap:
		return warning(name, found+"; swap is not accounted", "a sandbox may swap beyond its memory: boot with swapaccount=1, or switch swap off")
	}
	return ok(name, found)
}

func checkRuntime(info engine.Info, h Host) Finding {
	const name = "runtime"
	if info.OCIRuntime == "crun" && info.CgroupVersion == 1 && h.Hybrid {
		return failed(name, "crun, which refuses hybrid cgroups", "install runc and set runtime = \"runc\" under [engine] in containers.conf, or boot with cgroup v2")
	}
	if !info.Seccomp {
		return failed(name, info.OCIRuntime+", without seccomp", "use an engine and a kernel with seccomp")
	}
	return ok(name, info.OCIRuntime)
}

func checkStorage(info engine.Info) Finding {
	const name = "storage"
	if info.GraphDriver != "overlay" {
		return warning(name, info.GraphDriver+" at "+info.GraphRoot, "it copies whole images for each sandbox: use the overlay driver (storage.conf; a store keeps the driver it was made with)")
	}
	return ok(name, info.GraphDriver+" at "+info.GraphRoot)
}

func checkSELinux(info engine.Info, h Host) Finding {
	const name = "selinux"
	switch {
	case info.SELinux && h.SELinux == "enforcing":
		return warning(name, "enforcing; sandboxes run unconfined by it (label=disable), confined by everything else", "nothing: there is no policy for sandboxes yet")
	case h.SELinux == "enforcing":
		return warning(name, "enforcing, but the engine doesn't use it", "if runs fail with permission denied, look at `ausearch -m avc`")
	case h.SELinux != "":
		return ok(name, h.SELinux)
	}
	return ok(name, "off")
}

// checkUserNS tells whose ids sandboxes have on this host.
func (c Checkup) checkUserNS() Finding {
	const name = "user namespaces"
	switch {
	case c.UserNS == "auto" && c.Host.Inotify > 0 && c.Host.Inotify < wantInotify:
		return ok(name, fmt.Sprintf("one per sandbox, of ids that are nobody's; they and root's own programs share %d inotify instances (fs.inotify.max_user_instances)", c.Host.Inotify))
	case c.UserNS == "auto":
		return ok(name, "one per sandbox, of ids that are nobody's")
	case c.UserNS == "keep-id":
		return ok(name, "one per sandbox: "+c.UserNSWhy)
	case c.UserNSOff:
		return ok(name, "none: "+c.UserNSWhy)
	}
	return warning(name, "none: "+c.UserNSWhy,
		"an agent that breaks out of its sandbox has the ids of its files' owner on this host: docs/CONFIGURATION.md says what a namespace per sandbox takes")
}

// checkSubIDs is about rootless engines: a sandbox has more users than one.
func (c Checkup) checkSubIDs(rootful bool) Finding {
	h := c.Host
	const name = "subordinate ids"
	add := fmt.Sprintf("`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s`, then `podman system migrate`", h.User)
	least := min(h.SubUIDs, h.SubGIDs)
	switch {
	case h.UID == 0 || rootful:
		return ok(name, "not needed: the engine is root's")
	case c.Outside:
		return ok(name, "the engine's own matter, outside this container")
	case h.NoUserNamespaces != "":
		return failed(name, "user namespaces are switched off ("+h.NoUserNamespaces+" is 0)", "switch them on: sysctl, and a file in /etc/sysctl.d")
	case !h.IDMapTools:
		return failed(name, "newuidmap or newgidmap is not installed", "install the package uidmap")
	case h.SubIDsElsewhere:
		return ok(name, "kept by a directory service")
	case least == 0:
		return failed(name, h.User+" has no ranges in /etc/subuid and /etc/subgid", add)
	case least < wantSubIDs:
		return warning(name, fmt.Sprintf("%s has only %d", h.User, least), "images with higher ids don't work; "+add)
	}
	return ok(name, fmt.Sprintf("%d uids, %d gids", h.SubUIDs, h.SubGIDs))
}

// checkShared is about a server in a container: what sandboxes mount must be on
// something that the host mounted into it.
func (c Checkup) checkShared() Finding {
	const name = "shared with host"
	if !c.Outside {
		return ok(name, "the engine is on this side")
	}
	for _, dir := range []string{c.SharedDir, c.CacheDir} {
		if !mounted(c.Host.Mounts, dir) {
			return failed(name, dir+" is this container's own, and the engine is outside",
				"mount the host's directory there at the same path, or tell its path on the host by STROMBOLI_DATA_HOST_DIR or STROMBOLI_AGENT_SESSIONS_HOST_DIR")
		}
	}
	return ok(name, c.SharedDir+" and "+c.CacheDir)
}

// mounted reports whether a path lies below a mount other than the root's.
func mounted(mountinfo, path string) bool {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) > 4 && f[4] != "/" && (path == f[4] || strings.HasPrefix(path, f[4]+"/")) {
			return true
		}
	}
	return false
}

// checkPlaces makes sure that what is mounted from these directories can be
// executed in a sandbox.
func (c Checkup) checkPlaces() Finding {
	const name = "mount options"
	for _, dir := range []string{c.SharedDir, c.CacheDir} {
		s, err := c.Space(dir)
		if err == nil && s.NoExec {
			return failed(name, dir+" lies on a file system that is mounted noexec", "shim and agent CLI are executed from there: remount it with exec, or set STROMBOLI_DATA_DIR and STROMBOLI_CACHE_DIR to another")
		}
	}
	return ok(name, "programs can be executed")
}

func (c Checkup) checkDisk(graphRoot string) Finding {
	return CheckDisk(c.Space, c.DataDir, c.SharedDir, c.CacheDir, graphRoot)
}

// CheckDisk looks for room in each place; empty ones are left out.
func CheckDisk(space func(string) (Space, error), places ...string) Finding {
	const name = "disk"
	worst := ok(name, "")
	var texts []string
	seen := map[uint64]bool{}
	for _, dir := range places {
		if dir == "" {
			continue
		}
		s, err := space(dir)
		if err != nil {
			continue // not ours to read; the engine's store may be root's
		}
		if seen[s.Device] && s.Device != 0 {
			continue
		}
		seen[s.Device] = true
		text := fmt.Sprintf("%.1f GiB free at %s", float64(s.Free)/(1<<30), dir)
		texts = append(texts, text)
		const fix = "make room: `podman system prune`, old sessions, or another STROMBOLI_DATA_DIR"
		switch {
		case s.Free < fullBytes:
			return passing(failed(name, text, fix))
		case s.Files > 0 && s.Files < lowInodes/10:
			return passing(failed(name, fmt.Sprintf("%d inodes free at %s", s.Files, dir), fix))
		case s.Free < lowBytes, s.Files > 0 && s.Files < lowInodes:
			worst = warning(name, text, fix)
		}
	}
	if worst.Status == OK {
		worst.Found = strings.Join(texts, ", ")
	}
	return worst
}

// CheckCredential judges the model's credential at a time.
func CheckCredential(c Credential, now time.Time) Finding {
	const name = "credentials"
	if c.Demo {
		return ok(name, "none needed: the built-in scripted model answers")
	}
	if c.Err != nil {
		return passing(failed(name, c.Err.Error(), setupTokenHint))
	}
	found := c.Kind + " from " + c.Source
	if !c.Expires.IsZero() {
		found += ", expires " + c.Expires.UTC().Format(time.RFC3339)
	}
	switch {
	case !c.Expires.IsZero() && !now.Before(c.Expires):
		return passing(failed(name, found+": expired", "log in with the Claude CLI again; "+setupTokenHint))
	case c.Mode&0o077 != 0:
		return warning(name, fmt.Sprintf("%s; others may read the file (mode %04o)", found, c.Mode.Perm()), "chmod 600 "+c.Source)
	case c.Login, !c.Expires.IsZero() && c.Expires.Sub(now) < expiresSoon:
		return warning(name, found, setupTokenHint)
	}
	return ok(name, found)
}

func checkClock(h Host, built time.Time) Finding {
	const name = "clock"
	now := h.Now.UTC().Format(time.RFC3339)
	switch {
	case !built.IsZero() && h.Now.Before(built.Add(-24*time.Hour)):
		return passing(failed(name, now+" is before this program was built", "set the clock: TLS connections to the model would fail"))
	case h.ClockState == ClockFree:
		return warning(name, now+", not synchronised", "run a time service (systemd-timesyncd, chrony)")
	}
	return ok(name, now)
}

func checkFiles(h Host) Finding {
	const name = "open files"
	found := fmt.Sprintf("at most %d", h.Files)
	const fix = "raise the hard limit (LimitNOFILE= in a unit, ulimit -Hn in a shell); a run takes about ten"
	switch {
	case h.Files == 0:
		return warning(name, "the limit can't be read", "mount /proc")
	case h.Files < minFiles:
		return failed(name, found, fix)
	case h.Files < wantFiles:
		return warning(name, found, fix)
	}
	return ok(name, found)
}

// less compares the leading numbers of two versions.
func less(a, b string) bool {
	x, y := numbers(a), numbers(b)
	for i := range max(len(x), len(y)) {
		var m, n int
		if i < len(x) {
			m = x[i]
		}
		if i < len(y) {
			n = y[i]
		}
		if m != n {
			return m < n
		}
	}
	return false
}

// numbers are a version's dotted numbers up to the first other thing.
func numbers(version string) []int {
	var out []int
	for part := range strings.SplitSeq(version, ".") {
		digits := part
		if i := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			digits = part[:i]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			return out
		}
		out = append(out, n)
		if digits != part {
			return out
		}
	}
	return out
}
