package setup

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// fakeRoot makes a root with the given files.
func fakeRoot(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestReadHost(t *testing.T) {
	tools := fakeRoot(t, map[string]string{"newuidmap": "", "newgidmap": ""})
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if err := os.Chmod(filepath.Join(tools, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	uid := os.Getuid()
	passwd := "other:x:77777:1::/:/bin/sh\nme:x:" + itoa(uid) + ":1::/:/bin/sh\n"
	const limits = "Limit                     Soft Limit           Hard Limit           Units\n" +
		"Max processes             4096                 4096                 processes\n" +
		"Max open files            1024                 20000                files\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		path  string
		want  Host
	}{
		{"nothing", nil, "", Host{User: itoa(uid)}},
		{"server on cgroup v2", map[string]string{
			"proc/sys/kernel/osrelease": "6.1.0-13-amd64\n", "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
			"sys/fs/selinux/enforce": "1", "etc/passwd": passwd, "proc/self/limits": limits,
			"etc/subuid": "me:100000:65536\nother:1:5\nme:300000:1\n", "etc/subgid": itoa(uid) + ":100000:65536\nme:x:y\nbad\n",
		}, tools, Host{
			Kernel: "6.1.0-13-amd64", CgroupV2: true, SELinux: "enforcing", User: "me", SubUIDs: 65537, SubGIDs: 65536,
			IDMapTools: true, Files: 20000,
		}},
		{"hybrid cgroups", map[string]string{
			"proc/self/mountinfo": "1 0 0:1 / / rw\n", "sys/fs/cgroup/unified/cgroup.controllers": "", "sys/fs/selinux/enforce": "0",
			"etc/nsswitch.conf": "passwd: files\nsubid: sss\n", "proc/sys/user/max_user_namespaces": "0\n",
			"proc/self/limits": strings.ReplaceAll(limits, "20000", "unlimited"),
		}, "", Host{
			Mounts: "1 0 0:1 / / rw", Hybrid: true, SELinux: "permissive", User: itoa(uid), SubIDsElsewhere: true,
			NoUserNamespaces: "/proc/sys/user/max_user_namespaces", Files: 1 << 30,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ReadHost(fakeRoot(t, c.files), []string{"PATH=" + c.path})
			c.want.UID, c.want.Now, c.want.ClockState = uid, got.Now, got.ClockState
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func itoa(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

// sick is a checkup of a host on which all is well, for a test to worsen.
type sick struct {
	Checkup
	info    engine.Info
	infoErr error
	there   bool
}

func (s *sick) Info(context.Context) (engine.Info, error)         { return s.info, s.infoErr }
func (s *sick) ImageExists(context.Context, string) (bool, error) { return s.there, nil }

func wellHost(t *testing.T) *sick {
	t.Helper()
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	s := &sick{there: true, info: engine.Info{
		Name: "podman", Version: "5.4.2", OS: "linux", Kernel: "6.1.0", CgroupVersion: 2, GraphDriver: "overlay", GraphRoot: "/store",
		Controllers: []string{"cpu", "memory", "pids"}, OCIRuntime: "crun", Seccomp: true, LimitsSwap: true, EnforcesLimits: true, Rootless: true,
	}}
	s.Checkup = Checkup{
		Root: "/", DataDir: t.TempDir(), CacheDir: t.TempDir(), Socket: "/run/podman.sock", Image: "example.com/agent:1", Engine: s,
		UserNS: "auto",
		Host: Host{
			Kernel: "6.1.0", CgroupV2: true, UID: os.Getuid(), User: "me", SubUIDs: 65536, SubGIDs: 65536, IDMapTools: true,
			Files: 20000, Now: now, ClockState: ClockSynced,
		},
		Credential: Credential{Kind: "oauth", Source: "CLAUDE_CODE_OAUTH_TOKEN"}, Built: now.Add(-time.Hour),
		Space: func(string) (Space, error) { return Space{Free: 50 << 30, Files: 1e6}, nil },
	}
	cfg, err := Config{CacheDir: s.CacheDir}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	dir := cfg.cliDir()
	text, err := json.Marshal(marker{Package: cfg.cliPackage(), Version: cfg.Version, Integrity: pinned(cfg.cliPackage(), cfg.Version), Size: 1})
	if err := errors.Join(err, os.MkdirAll(dir.Path, 0o755), os.WriteFile(filepath.Join(dir.Path, markerFile), text, 0o644),
		os.WriteFile(dir.Binary, []byte("x"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestHealthyHost(t *testing.T) {
	s := wellHost(t)
	found := Examine(t.Context(), s.Checkup)
	for _, f := range found {
		if f.Status != OK || f.Found == "" {
			t.Errorf("%+v", f)
		}
	}
	if !Healthy(found) || len(Refusals(found)) > 0 {
		t.Error("a host without a fault is not healthy")
	}
}

// Each fault is found by the check that is for it, says what to do, and stops
// a server only if it doesn't pass by itself.
func TestFaults(t *testing.T) {
	user := func(s *sick) { s.Host.UID = 1000; s.DataDir = filepath.Join(s.DataDir, "new") }
	for _, c := range []struct {
		name    string
		spoil   func(*sick)
		check   string
		status  Status
		says    string // in what was found
		fix     string
		refused bool
	}{
		{"engine down", func(s *sick) { s.EngineErr = errors.New("nobody") }, "engine", Failed, "nobody", "install podman", false},
		{"named engine down", func(s *sick) { s.Address, s.EngineErr = "unix:///x", errors.New("nobody") }, "engine", Failed, "nobody", "CONTAINER_HOST", false},
		{"engine far away", func(s *sick) { s.Address, s.EngineErr = "ssh://core@localhost:1", errors.New("x") }, "engine", Failed, "another machine", "podman machine ssh", true},
		{"engine that dies", func(s *sick) { s.infoErr = errors.New("gone") }, "image", Skipped, "", "", false},
		{"engine too old", func(s *sick) { s.info.Version = "4.2.9" }, "engine version", Failed, "4.2.9", "upgrade", true},
		{"engine in a machine", func(s *sick) { s.info.Kernel = "6.9-fedora" }, "engine's kernel", Failed, "6.9-fedora", "podman machine ssh", true},
		{"engine on another system", func(s *sick) { s.info.OS = "freebsd" }, "engine's kernel", Failed, "freebsd", "podman machine", true},
		{"kernel too old", func(s *sick) { s.Host.Kernel, s.info.Kernel = "3.10.0", "3.10.0" }, "kernel", Failed, "3.10", "upgrade", true},
		{"kernel without overlay", func(s *sick) { user(s); s.Host.Kernel, s.info.Kernel = "5.4.0", "5.4.0" }, "kernel", Warning, "5.4.0", "fuse-overlayfs", false},
		{"rootless on v1", func(s *sick) { s.info.CgroupVersion = 1 }, "cgroups", Failed, "no memory", "ALLOW_UNENFORCED", true},
		{"rootless on v1, permitted", func(s *sick) { s.info.CgroupVersion, s.AllowUnenforced = 1, true }, "cgroups", Warning, "no memory", "cgroup v2", false},
		{"no delegation", func(s *sick) { s.info.Controllers = []string{"memory", "pids"} }, "cgroups", Failed, "missing: cpu", "Delegate", true},
		{"no controller", func(s *sick) { s.info.Rootless, s.info.Controllers = false, []string{"cpu", "pids"} }, "cgroups", Failed, "missing: memory", "kernel", true},
		{"swap", func(s *sick) { s.info.LimitsSwap = false }, "cgroups", Warning, "swap", "swapaccount", false},
		{"crun on hybrid", func(s *sick) { s.info.Rootless, s.info.CgroupVersion, s.Host.Hybrid = false, 1, true }, "runtime", Failed, "crun", "runc", true},
		{"no seccomp", func(s *sick) { s.info.Seccomp = false }, "runtime", Failed, "seccomp", "seccomp", true},
		{"vfs", func(s *sick) { s.info.GraphDriver = "vfs" }, "storage", Warning, "vfs", "overlay", false},
		{"selinux", func(s *sick) { s.info.SELinux, s.Host.SELinux = true, "enforcing" }, "selinux", Warning, "label=disable", "policy", false},
		{"no user namespace", func(s *sick) { s.UserNS, s.UserNSWhy = "none", "the kernel is old" }, "user namespaces", Warning, "the kernel is old", "CONFIGURATION.md", false},
		{"few inotify instances", func(s *sick) { s.Host.Inotify = 128 }, "user namespaces", OK, "share 128 inotify", "", false},
		{"namespaces switched off", func(s *sick) { s.UserNS, s.UserNSWhy, s.UserNSOff = "none", "switched off", true }, "user namespaces", OK, "none: switched off", "", false},
		{"no subordinate ids", func(s *sick) { user(s); s.Host.SubGIDs = 0 }, "subordinate ids", Failed, "no ranges", "usermod", true},
		{"few subordinate ids", func(s *sick) { user(s); s.Host.SubUIDs = 1000 }, "subordinate ids", Warning, "1000", "usermod", false},
		{"no newuidmap", func(s *sick) { user(s); s.Host.IDMapTools = false }, "subordinate ids", Failed, "newuidmap", "uidmap", true},
		{"no user namespaces", func(s *sick) { user(s); s.Host.NoUserNamespaces = "/proc/x" }, "subordinate ids", Failed, "/proc/x", "sysctl", true},
		{"a file as data directory", func(s *sick) { s.DataDir = "/dev/null" }, "data directory", Failed, "not a directory", "STROMBOLI_DATA_DIR", true},
		{"another's data directory", func(s *sick) { s.Host.UID = 4711 }, "data directory", Failed, "another user", "owner", true},
		{"server in a container, nothing shared", func(s *sick) { s.Outside, s.Host.Mounts = true, "1 0 0:1 / / rw" }, "shared with host", Failed, "this container's own", "STROMBOLI_DATA_HOST_DIR", true},
		{"server in a container, all shared", func(s *sick) {
			s.Outside, s.Host.Mounts = true, "1 0 0:1 / / rw\n2 1 8:1 /a "+s.DataDir+" rw\n3 1 8:1 /b "+s.CacheDir+" rw"
		}, "shared with host", OK, "", "", false},
		{"noexec", func(s *sick) {
			s.Space = func(string) (Space, error) { return Space{Free: 50 << 30, NoExec: true}, nil }
		}, "mount options", Failed, "noexec", "remount", true},
		{"disk full", func(s *sick) { s.Space = func(string) (Space, error) { return Space{Free: 1 << 20}, nil } }, "disk", Failed, "0.0 GiB", "make room", false},
		{"no inodes", func(s *sick) { s.Space = func(string) (Space, error) { return Space{Free: 50 << 30, Files: 5}, nil } }, "disk", Failed, "5 inodes", "make room", false},
		{"disk low", func(s *sick) { s.Space = func(string) (Space, error) { return Space{Free: 1 << 30}, nil } }, "disk", Warning, "1.0 GiB", "make room", false},
		{"no image", func(s *sick) { s.there = false }, "image", Failed, "example.com/agent:1", "podman pull", false},
		{"no agent image", func(s *sick) { s.there, s.Image = false, agentRepository+":1" }, "image", Failed, "store", "stromboli setup --image", false},
		{"no cli", func(s *sick) { s.CacheDir = filepath.Join(s.CacheDir, "x") }, "agent cli", Failed, "not in", "stromboli setup", false},
		{"no credentials", func(s *sick) { s.Credential = Credential{Err: errors.New("none")} }, "credentials", Failed, "none", "claude setup-token", false},
		{"expired", func(s *sick) { s.Credential.Expires = s.Host.Now }, "credentials", Failed, "expired", "claude setup-token", false},
		{"a person's login", func(s *sick) { s.Credential.Login, s.Credential.Expires = true, s.Host.Now.Add(1e15) }, "credentials", Warning, "expires 2026", "claude setup-token", false},
		{"open secrets file", func(s *sick) { s.Credential.Mode = 0o644 }, "credentials", Warning, "0644", "chmod 600", false},
		{"clock back", func(s *sick) { s.Built = s.Host.Now.AddDate(1, 0, 0) }, "clock", Failed, "before this program", "set the clock", false},
		{"clock free", func(s *sick) { s.Host.ClockState = ClockFree }, "clock", Warning, "not synchronised", "time service", false},
		{"few files", func(s *sick) { s.Host.Files = 256 }, "open files", Failed, "256", "LimitNOFILE", true},
		{"fewer files than good", func(s *sick) { s.Host.Files = 1024 }, "open files", Warning, "1024", "LimitNOFILE", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := wellHost(t)
			c.spoil(s)
			found := Examine(t.Context(), s.Checkup)
			seen := false
			for _, f := range found {
				if f.Status != OK && f.Status != Skipped && f.Fix == "" {
					t.Errorf("nothing is said to do: %+v", f)
				}
				if f.Check == c.check {
					seen = true
					if f.Status != c.status || !strings.Contains(f.Found, c.says) || !strings.Contains(f.Fix, c.fix) {
						t.Errorf("%+v", f)
					}
				}
			}
			if refused := len(Refusals(found)) > 0; !seen || refused != c.refused {
				t.Errorf("check there: %v; refused: %v, want %v: %+v", seen, refused, c.refused, Refusals(found))
			}
			if c.status == Failed && Healthy(found) {
				t.Error("healthy with a failure")
			}
		})
	}
}

func TestLess(t *testing.T) {
	for _, c := range []struct {
		a, b string
		less bool
	}{
		{"4.3.1", "4.3", false},
		{"4.3", "4.3", false},
		{"4.2.9", "4.3", true},
		{"4.10.0", "4.3", false},
		{"5.0.0-dev", "4.3", false},
		{"5.13.0-19-generic", "5.13", false},
		{"5", "4.3", false},
		{"", "4.3", true},
	} {
		if got := less(c.a, c.b); got != c.less {
			t.Errorf("%q < %q: %v", c.a, c.b, got)
		}
	}
}

func TestSpaceAt(t *testing.T) {
	dir := t.TempDir()
	here, err := SpaceAt(dir)
	if err != nil || here.Free == 0 || here.Device == 0 {
		t.Fatalf("%+v, %v", here, err)
	}
	later, err := SpaceAt(filepath.Join(dir, "not", "yet"))
	if err != nil || later.Device != here.Device {
		t.Errorf("%+v, %v", later, err)
	}
}
