package podman

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// testHardening looks from inside at what a sandbox's container is, with the
// engine's ids and, where it can, with ids of its own.
func testHardening(t *testing.T, s *enginetest.Suite, info engine.Info) {
	switch {
	case info.Rootless:
		hardening(t, s, engine.UserNS{KeepID: true, UID: 1000, GID: 1000}, `(?m)^ +1000 +0 +1$`)
	case info.MapsImages:
		hardening(t, s, enginetest.OwnIDs(), `^ +0 +2100000000 +65536\n$`)
		fallthrough
	default:
		hardening(t, s, engine.UserNS{}, `^ +0 +0 +4294967295\n$`)
	}
}

func hardening(t *testing.T, s *enginetest.Suite, ids engine.UserNS, uidMap string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	out, mount := enginetest.Shared(t)
	program := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(program, probe(t), 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(program); strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		_ = os.Chmod(dir, 0o755)
	}
	spec := s.Spec()
	spec.Command = []string{"/run/stromboli/shim", "report", "/out"}
	spec.Tmpfs = []engine.Tmpfs{{Target: "/run/stromboli", Bytes: 96 << 20, Mode: 0o700}}
	spec.Mounts = []engine.Mount{
		mount,
		{Source: program, Target: "/run/stromboli/shim", ReadOnly: true}, // executable below a noexec tmpfs
		{Source: filepath.Dir(program), Target: "/ro", ReadOnly: true, NoExec: true},
		{Source: filepath.Dir(program), Target: "/opt/new/mountpoint", ReadOnly: true},
	}
	spec.Env = map[string]string{"GIVEN": "a=b c"}
	spec.Hostname, spec.Workdir, spec.ShmBytes, spec.Nofile, spec.Nproc = "sandbox", "/tmp", 8<<20, 1000, 500
	spec.UserNS = ids
	id := s.Run(ctx, t, spec)
	if code, err := s.Engine.Wait(ctx, id); code != 0 || err != nil {
		t.Fatalf("exit %d, %v", code, err)
	}
	data, err := os.ReadFile(filepath.Join(out, "report.json"))
	var seen map[string]string
	if err == nil {
		err = json.Unmarshal(data, &seen)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ in, pattern string }{
		{"/proc/self/status", `CapEff:\t00000000000000e0`},
		{"/proc/self/status", `CapBnd:\t00000000000000e0`},
		{"/proc/self/status", `CapAmb:\t0000000000000000`},
		{"/proc/self/status", `NoNewPrivs:\t1`},
		{"/proc/self/status", `Seccomp:\t2`},
		{"/proc/self/status", `Uid:\t0\t0\t0\t0`},
		{"/proc/self/status", `NSpid:\t1\n`},
		{"/proc/self/limits", `Max open files +1000 +1000 `},
		{"/proc/self/limits", `Max processes +500 +500 `},
		{"/proc/self/mounts", ` / overlay ro,`},
		{"/proc/self/mounts", ` /run/stromboli tmpfs rw,nosuid,nodev,noexec,\S*size=98304k,mode=700`},
		{"/proc/self/mounts", ` /run/stromboli/shim \S+ ro,nosuid,nodev,relatime`},
		{"/proc/self/mounts", ` /out \S+ rw,nosuid,nodev,relatime`},
		{"/proc/self/mounts", ` /ro \S+ ro,nosuid,nodev,noexec,`},
		{"/proc/self/mounts", ` /opt/new/mountpoint `},
		{"/proc/self/mounts", ` /dev/shm tmpfs \S*noexec\S*size=8192k`},
		{"/etc/hosts", `127\.0\.0\.1\s+localhost`},
		{"hostname", `^sandbox$`},
		{"cwd", `^/tmp$`},
		{"write /", `read-only`},
		{"write /run", `read-only`},
		{"write /tmp", `read-only`},
		{"write ro", `read-only`},
		{"mount", `operation not permitted`},
		{"chown", `operation not permitted`},
		{"/proc/self/uid_map", uidMap},
	} {
		if !regexp.MustCompile(want.pattern).MatchString(seen[want.in]) {
			t.Errorf("%s lacks %q:\n%s", want.in, want.pattern, seen[want.in])
		}
	}
	for _, env := range []string{"env GIVEN=a=b c", "env FROM_IMAGE=yes", "env PATH=/usr/bin:/bin"} {
		if _, ok := seen[env]; !ok {
			t.Errorf("no %q", env)
		}
	}
	if n := strings.Count(seen["/proc/net/dev"], ":"); n != 1 {
		t.Errorf("network devices beside loopback:\n%s", seen["/proc/net/dev"])
	}
	if strings.Contains(strings.ToLower(string(data)), "proxy") {
		t.Error("a proxy variable of the host reached the container")
	}
	t.Logf("hosts:\n%s\nuid_map:\n%s", seen["/etc/hosts"], seen["/proc/self/uid_map"])
}

// testLimits overruns a container's limits.
func testLimits(t *testing.T, s *enginetest.Suite, info engine.Info) {
	if !info.EnforcesLimits {
		t.Log("this engine enforces none")
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	if code, err := s.Engine.Wait(ctx, s.Run(ctx, t, s.Spec("alloc", "400"))); code != 137 || err != nil {
		t.Errorf("400 MiB in 128: exit %d, %v", code, err)
	}
	if code, err := s.Engine.Wait(ctx, s.Run(ctx, t, s.Spec("alloc", "50"))); code != 0 || err != nil {
		t.Errorf("50 MiB in 128: exit %d, %v", code, err)
	}
	out, mount := enginetest.Shared(t)
	spec := s.Spec("threads", "200", "/out")
	spec.Mounts, spec.MemoryBytes = []engine.Mount{mount}, 512<<20
	if code, err := s.Engine.Wait(ctx, s.Run(ctx, t, spec)); code != 0 || err != nil {
		t.Fatalf("threads: exit %d, %v", code, err)
	}
	data, err := os.ReadFile(filepath.Join(out, "started"))
	if n, _ := strconv.Atoi(string(data)); err != nil || n == 0 || n >= 64 {
		t.Errorf("%s processes started with a limit of 64, %v", data, err)
	}
}

// testHotPath logs what a container costs; it fails only on an order of magnitude.
func testHotPath(t *testing.T, s *enginetest.Suite) {
	const rounds = 15
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	var create, start, ready, remove []time.Duration
	for range rounds {
		out, mount := enginetest.Shared(t)
		mount.ReadOnly = true
		file, err := net.Listen("unix", filepath.Join(out, "s"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(out, "s"), 0o666); err != nil {
			t.Fatal(err)
		}
		spec := s.Spec("dial", "/out/s")
		spec.Tmpfs = []engine.Tmpfs{{Target: "/run/stromboli", Bytes: 96 << 20, Mode: 0o700}}
		spec.Mounts = []engine.Mount{mount}
		began := time.Now()
		id := s.Create(ctx, t, spec)
		created := time.Now()
		if err := s.Engine.Start(ctx, id); err != nil {
			t.Fatal(err)
		}
		started := time.Now()
		conn, err := file.Accept()
		if err != nil {
			t.Fatal(err)
		}
		dialled := time.Now()
		_ = conn.Close()
		_ = file.Close()
		if err := s.Engine.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
		create = append(create, created.Sub(began))
		start = append(start, started.Sub(created))
		ready = append(ready, dialled.Sub(began))
		remove = append(remove, time.Since(dialled))
	}
	median := func(d []time.Duration) time.Duration {
		slices.Sort(d)
		return d[len(d)/2].Round(100 * time.Microsecond)
	}
	t.Logf("medians of %d: create %v, start %v, ready %v, remove %v", rounds, median(create), median(start), median(ready), median(remove))
	if median(ready) > 2*time.Second {
		t.Error("a container takes much too long")
	}
}
