package sandbox

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// halfMade is a container that real Podman has made and not started: conmon,
// and the process that waits to become its first one.
type halfMade struct {
	name, graphRoot string
	conmon, first   int
}

// makeHalf makes one in a store of its own, of which the engine that the test's
// server uses knows nothing, as if it had forgotten it.
func makeHalf(t *testing.T) halfMade {
	t.Helper()
	enginetest.RequirePodman(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "o")
	must(t, err)
	h := halfMade{name: containerName(stromboli.NewSandboxID()), graphRoot: filepath.Join(dir, "root")}
	podman := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("podman", append([]string{"--root", h.graphRoot, "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("podman %v: %v: %s", args, err, stderr.String())
		}
		return out
	}
	must(t, os.MkdirAll(filepath.Join(dir, "rootfs", "bin"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "rootfs", "bin", "x"), nil, 0o755)) // never executed
	podman("create", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--name", h.name, "--rootfs", filepath.Join(dir, "rootfs"), "/bin/x")
	t.Cleanup(func() {
		podman("rm", "--force", h.name)
		must(t, os.RemoveAll(dir))
	})
	podman("init", h.name)
	var found []struct{ State struct{ Pid, ConmonPid int } }
	must(t, json.Unmarshal(podman("inspect", h.name), &found))
	h.conmon, h.first = found[0].State.ConmonPid, found[0].State.Pid
	if !exists(h.conmon) || !exists(h.first) {
		t.Fatalf("%+v", h)
	}
	return h
}

// exists reports whether a process is there and not dead.
func exists(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return pid > 0 && err == nil && !strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " Z")
}

// TestOrphans: what an engine has forgotten of a half-made sandbox is ended, and
// nothing that it knows, that is being made, that is young, or that is another
// store's.
func TestOrphans(t *testing.T) {
	half := makeHalf(t)
	alive := func(what string, f *fixture, age time.Duration) {
		t.Helper()
		must(t, f.removeOrphans(t.Context(), age))
		if !exists(half.conmon) || !exists(half.first) {
			t.Fatalf("%s: it was ended", what)
		}
	}
	in := func(graphRoot string) *fixture {
		return newFixture(t, func(c *Config) { c.Info.GraphRoot = graphRoot })
	}
	alive("young", in(half.graphRoot), time.Hour)
	alive("of another store", in(half.graphRoot+"2"), 0)
	container := in(half.graphRoot)
	container.cfg.Container = true
	alive("the engine's processes are another namespace's", container, 0)
	known := in(half.graphRoot)
	_, err := known.engine.Create(t.Context(), engine.ContainerSpec{Name: half.name, Image: glibcImage, Command: []string{"/x"}})
	must(t, err)
	alive("known", known, 0)
	ours := in(half.graphRoot)
	ours.claim(map[string]bool{strings.TrimPrefix(half.name, containerName("")): true})
	alive("being made", ours, 0)

	must(t, in(half.graphRoot).removeOrphans(t.Context(), 0))
	for end := time.Now().Add(10 * time.Second); exists(half.conmon) || exists(half.first); <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the forgotten is still there")
		}
	}
}
