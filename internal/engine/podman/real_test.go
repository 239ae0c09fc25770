package podman

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// The tests of this package run as root on a store of their own, and once more
// as an ordinary user: TestRootless runs this test binary as one, with these.
const (
	asUserEnv = "STROMBOLI_TEST_AS_USER"     // set in such a run
	probeEnv  = "STROMBOLI_TEST_PROBE"       // the probe's path there
	storeEnv  = "STROMBOLI_TEST_STORE"       // which store is expected there: own or user
	userTests = "^(TestPodman|TestService)$" // what runs there
)

func asUser() bool { return os.Getenv(asUserEnv) != "" }

// testDir is a directory with a path short enough for sockets.
func testDir(t *testing.T) string {
	t.Helper()
	sweepDirs(t)
	dir, err := os.MkdirTemp("", fmt.Sprintf("st-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A dying container's mounts may be there a little longer.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if asUser() {
			return // files of subordinate ids are there; they go with the user
		}
		_ = syscall.Unmount(filepath.Join(dir, "e", "store", "overlay"), syscall.MNT_DETACH)
		enginetest.WaitFor(ctx, t, "removal of "+dir, func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}

// sweepDirs removes what killed tests left: containers, services, files.
func sweepDirs(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "st-*-*"))
	if err != nil || asUser() {
		return
	}
	for _, dir := range dirs {
		owner := strings.Split(filepath.Base(dir), "-")[1]
		if _, err := os.Stat("/proc/" + owner); err == nil {
			continue
		}
		t.Log("sweeping ", dir)
		ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
		if c, err := Open(ctx, testConfig(t, dir)); err == nil {
			left, _ := c.List(ctx, map[string]string{enginetest.TestLabel: ""})
			for _, container := range left {
				_ = c.Remove(ctx, container.ID)
			}
			_ = c.StopService(ctx)
			c.Close()
		}
		cancel()
		_ = syscall.Unmount(filepath.Join(dir, "e", "store", "overlay"), syscall.MNT_DETACH)
		if err := os.RemoveAll(dir); err != nil {
			t.Log(err)
		}
	}
}

func testConfig(t *testing.T, dir string) OpenConfig {
	return OpenConfig{
		Dir: filepath.Join(dir, "e"), AllowOwnService: true, PrivateStore: !asUser(), Environ: os.Environ(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func openTest(t *testing.T, cfg OpenConfig) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	c, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), enginetest.Limit)
		defer cancel()
		if err := c.StopService(ctx); err != nil {
			t.Errorf("stop the service: %v", err)
		}
		c.Close()
	})
	return c
}

func probe(t *testing.T) []byte {
	t.Helper()
	if file := os.Getenv(probeEnv); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return enginetest.BuildProbe(t)
}

func TestPodman(t *testing.T) {
	enginetest.RequirePodman(t)
	if os.Geteuid() != 0 && !asUser() {
		enginetest.Missing(t, "root", "the tests on a store of their own run as root, and by it as a user")
	}
	c := openTest(t, testConfig(t, testDir(t)))
	if want := os.Getenv(storeEnv); want != "" && (want == "own") != c.service.private {
		t.Errorf("the store is our own: %v, want the %s store", c.service.private, want)
	}
	t.Run("suite", func(t *testing.T) {
		s := enginetest.Load(t, c, probe(t))
		info, err := c.Info(t.Context())
		if err != nil || info.GraphDriver != "overlay" || info.Rootless != asUser() {
			t.Fatalf("info: %+v, %v", info, err)
		}
		t.Run("conformance", func(t *testing.T) { enginetest.Conformance(t, s) })
		t.Run("hardening", func(t *testing.T) { testHardening(t, s, info) })
		t.Run("limits", func(t *testing.T) { testLimits(t, s, info) })
		t.Run("hot path", func(t *testing.T) { testHotPath(t, s) })
		t.Run("root", func(t *testing.T) { testRoot(t, s, info) })
		t.Run("cli", func(t *testing.T) { testCLI(t, c, s) })
	})
}

func TestService(t *testing.T) {
	enginetest.RequirePodman(t)
	if os.Geteuid() != 0 && !asUser() {
		enginetest.Missing(t, "root", "the tests on a store of their own run as root, and by it as a user")
	}
	dir := testDir(t)
	cfg := testConfig(t, dir)
	// Several at once start one service.
	opened := make(chan error, 4)
	for range cap(opened) {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
			defer cancel()
			c, err := Open(ctx, cfg)
			if err == nil {
				c.Close()
			}
			opened <- err
		}()
	}
	for range cap(opened) {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
	c := openTest(t, cfg)
	if pids := servers(t, c); len(pids) == 0 || len(pids) > 1 && !asUser() || len(pids) > 2 {
		t.Errorf("services: %v", pids)
	}
	s := enginetest.Load(t, c, probe(t))
	t.Run("service", func(t *testing.T) { testService(t, cfg, c, s) })
}

// testService kills the service under a running container.
func testService(t *testing.T, cfg OpenConfig, c *Client, s *enginetest.Suite) {
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() { watched <- c.Run(running) }()
	defer func() {
		stop()
		if err := <-watched; err != nil {
			t.Errorf("run: %v", err)
		}
	}()

	out, mount := enginetest.Shared(t)
	spec := s.Spec("term", "/out")
	spec.Mounts = []engine.Mount{mount}
	id := s.Run(ctx, t, spec)
	enginetest.WaitFile(ctx, t, filepath.Join(out, "ready"))
	ended := make(chan error, 1)
	go func() {
		code, err := c.Wait(ctx, id)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d", code)
		}
		ended <- err
	}()

	old := servers(t, c)
	for _, pid := range old {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	began := time.Now()
	enginetest.WaitFor(ctx, t, "a new service", func() bool {
		pids := servers(t, c)
		return len(pids) > 0 && pids[0] != old[0] && c.service.ping(ctx) == nil
	})
	t.Logf("back after %v", time.Since(began).Round(time.Millisecond))
	if got, err := c.Inspect(ctx, id); err != nil || got.State != engine.StateRunning {
		t.Errorf("the container after the service's end: %+v, %v", got, err)
	}

	// A second client, as after a crash of ours, adopts what runs.
	second := cfg
	c2, err := Open(ctx, second)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	if a, b := servers(t, c), servers(t, c2); len(a) == 0 || fmt.Sprint(a) != fmt.Sprint(b) || c2.service.child != 0 {
		t.Errorf("the second client started a service: %v, %v", a, b)
	}
	if err := c2.Kill(ctx, id, "TERM"); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("wait across the service's end: %v", err)
	}
	if err := c2.Remove(ctx, id); err != nil {
		t.Error(err)
	}

	// By address it is an engine of somebody else's.
	third, err := Open(ctx, OpenConfig{Host: "unix://" + c.Socket(), Log: cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if err := third.StopService(ctx); err != nil || third.Own() || !c2.Own() || len(servers(t, c)) == 0 {
		t.Errorf("own: %v, %v; %v", third.Own(), c2.Own(), err)
	}
	if out, err := third.CLI(ctx, "image", "exists", s.Image).CombinedOutput(); err != nil {
		t.Errorf("command line by address: %v: %s", err, out)
	}

	// Without Run, a call finds the service gone and starts it.
	stop()
	if err := c.StopService(ctx); err != nil {
		t.Fatal(err)
	}
	if pids := servers(t, c); len(pids) != 0 {
		t.Errorf("stopped, but there is %v", pids)
	}
	if err := os.WriteFile(c.socket, nil, 0o600); err != nil { // something stale in its place
		t.Fatal(err)
	}
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping after the end: %v", err)
	}
	if conf, err := os.ReadFile(c.service.conf); err != nil || !strings.Contains(string(conf), "[engine]") {
		t.Errorf("containers.conf: %s, %v", conf, err)
	}
}

func servers(t *testing.T, c *Client) []int {
	t.Helper()
	pids, err := c.service.servers()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// testCLI checks that the command line works on the same store.
func testCLI(t *testing.T, c *Client, s *enginetest.Suite) {
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Containerfile"), []byte("FROM "+s.Image+"\nENV BUILT=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ref := s.Image + "-built"
	if out, err := c.CLI(ctx, "build", "-q", "-t", ref, dir).CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	if i, err := c.ImageInspect(ctx, ref); err != nil || !strings.Contains(fmt.Sprint(i.Env), "BUILT=yes") {
		t.Errorf("built image: %+v, %v", i, err)
	}
	if err := c.ImageRemove(ctx, ref); err != nil {
		t.Error(err)
	}
}

// TestDefaultStore uses the store that root has anyway, through a service of
// our own unless one answers already.
func TestDefaultStore(t *testing.T) {
	enginetest.RequirePodman(t)
	if os.Geteuid() != 0 {
		enginetest.Missing(t, "root", "only root's store is known to be usable")
	}
	cfg := testConfig(t, testDir(t))
	cfg.PrivateStore = false
	s := enginetest.Load(t, openTest(t, cfg), probe(t))
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	id := s.Run(ctx, t, s.Spec("exit", "5"))
	if code, err := s.Engine.Wait(ctx, id); code != 5 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
}

func TestRootless(t *testing.T) {
	enginetest.RequirePodman(t)
	if asUser() {
		t.Skip("only once")
	}
	if os.Geteuid() != 0 {
		enginetest.Missing(t, "root", "only root can make users for rootless tests")
	}
	program := probe(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, store string
		runtimeDir  bool
		prepare     string // a shell command of the user's
	}{
		{name: "new user without XDG_RUNTIME_DIR", store: "own"},
		{name: "overlay store", store: "user", runtimeDir: true, prepare: `mkdir -p ~/.config/containers &&
			printf '[storage]\ndriver = "overlay"\n' > ~/.config/containers/storage.conf`},
		{name: "beside a vfs store", store: "own", runtimeDir: true, prepare: "podman --storage-driver vfs info >/dev/null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := enginetest.NewUser(t)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			test, probeFile := filepath.Join(u.Home, "t"), filepath.Join(u.Home, "probe")
			if err := errors.Join(os.WriteFile(test, binary, 0o755), os.WriteFile(probeFile, program, 0o755)); err != nil {
				t.Fatal(err)
			}
			env := []string{asUserEnv + "=1", probeEnv + "=" + probeFile, storeEnv + "=" + c.store, "STROMBOLI_TEST_REQUIRE=podman"}
			if c.runtimeDir {
				dir := filepath.Join(u.Home, "run")
				if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, u.UID, u.GID)); err != nil {
					t.Fatal(err)
				}
				env = append(env, "XDG_RUNTIME_DIR="+dir)
			}
			if c.prepare != "" {
				if out, err := u.Command(ctx, env, "/bin/sh", "-c", c.prepare).CombinedOutput(); err != nil {
					t.Fatalf("prepare: %v: %s", err, out)
				}
			}
			out, err := u.Command(ctx, env, test, "-test.run", userTests, "-test.v", "-test.timeout=4m").CombinedOutput()
			if err != nil {
				t.Errorf("as an ordinary user: %v", err)
			}
			t.Logf("%s", out)
		})
	}
}
