package enginetest

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Conformance checks that an engine does what engine.Engine's comments say.
func Conformance(t *testing.T, s *Suite) {
	for _, c := range []struct {
		name string
		test func(ctx context.Context, t *testing.T, s *Suite)
	}{
		{"info", testInfo},
		{"lifecycle", testLifecycle},
		{"missing", testMissing},
		{"conflicts", testConflicts},
		{"bad command", testBadCommand},
		{"kill", testKill},
		{"stop", testStop},
		{"restart", testRestart},
		{"wait", testWait},
		{"remove", testRemove},
		{"list", testList},
		{"in force", testInForce},
		{"user namespace", testUserNS},
		{"paths", testPaths},
		{"stats", testStats},
		{"events", testEvents},
		{"images", testImages},
		{"secrets", testSecrets},
		{"pull", testPull},
		{"search", testSearch},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), Limit)
			defer cancel()
			c.test(ctx, t, s)
		})
	}
}

func testInfo(ctx context.Context, t *testing.T, s *Suite) {
	if err := s.Engine.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	info, err := s.Engine.Info(ctx)
	if err != nil || info.Name == "" || info.Version == "" || info.CgroupVersion == 0 {
		t.Fatalf("info: %+v, %v", info, err)
	}
	if info.Rootless && info.CgroupVersion == 1 && info.EnforcesLimits {
		t.Error("rootless on cgroup v1 can't enforce limits")
	}
	t.Logf("%+v", info)
}

func testLifecycle(ctx context.Context, t *testing.T, s *Suite) {
	e := s.Engine
	spec := s.Spec("exit", "7")
	spec.Labels["other"] = "a=b, c"
	id := s.Create(ctx, t, spec)
	c, err := e.Inspect(ctx, id)
	if err != nil || c.State != engine.StateCreated || c.ID != id || c.Name != spec.Name || c.Image != s.Image ||
		c.ImageDigest == "" || c.Labels["other"] != "a=b, c" || c.PID != 0 || !c.StartedAt.IsZero() {
		t.Fatalf("created: %+v, %v", c, err)
	}
	if err := e.Start(ctx, spec.Name); err != nil { // by name
		t.Fatal(err)
	}
	if code, err := e.Wait(ctx, id); code != 7 || err != nil {
		t.Fatalf("wait: %d, %v", code, err)
	}
	c, err = e.Inspect(ctx, id)
	if err != nil || c.State != engine.StateExited || c.ExitCode != 7 || c.PID != 0 || c.StartedAt.IsZero() {
		t.Fatalf("exited: %+v, %v", c, err)
	}
	if code, err := e.Wait(ctx, id); code != 7 || err != nil {
		t.Fatalf("wait again: %d, %v", code, err)
	}
	if err := e.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Inspect(ctx, id); !errors.Is(err, engine.ErrNotFound) {
		t.Fatalf("inspect after remove: %v", err)
	}
}

func testMissing(ctx context.Context, t *testing.T, s *Suite) {
	e := s.Engine
	const id = "stromboli-test-nobody"
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s of a missing container: %v", what, err)
		}
	}
	check("start", e.Start(ctx, id))
	check("kill", e.Kill(ctx, id, "KILL"))
	check("stop", e.Stop(ctx, id, time.Second))
	_, err := e.Inspect(ctx, id)
	check("inspect", err)
	_, err = e.Wait(ctx, id)
	check("wait", err)
	_, err = e.StatPath(ctx, id, "/etc/passwd")
	check("stat", err)
	_, err = e.ReadFile(ctx, id, "/etc/passwd", 100)
	check("read", err)
	_, err = e.Stats(ctx, id)
	check("stats", err)
	if err := e.Remove(ctx, id); err != nil {
		t.Errorf("remove of a missing container: %v", err)
	}
	spec := s.Spec("exit", "0")
	spec.Image = "localhost/stromboli-test/no-such-image:1"
	if _, err := e.Create(ctx, spec); !errors.Is(err, engine.ErrImageMissing) {
		t.Errorf("create of a missing image: %v", err)
	}
	if c, err := e.Inspect(ctx, spec.Name); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("a refused create left %+v, %v", c, err)
	}
}

func testConflicts(ctx context.Context, t *testing.T, s *Suite) {
	spec := s.Spec("exit", "0")
	id := s.Create(ctx, t, spec)
	if _, err := s.Engine.Create(ctx, spec); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("a second container of the same name: %v", err)
	}
	if err := s.Engine.Kill(ctx, id, "KILL"); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("kill before start: %v", err)
	}
	if err := s.Engine.Start(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Engine.Wait(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Engine.Kill(ctx, id, "KILL"); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("kill after the end: %v", err)
	}
	if err := s.Engine.Stop(ctx, id, time.Second); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
}

func testBadCommand(ctx context.Context, t *testing.T, s *Suite) {
	spec := s.Spec()
	spec.Command = []string{"/no/such/program"}
	id := s.Create(ctx, t, spec)
	err := s.Engine.Start(ctx, id)
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start of a missing program: %v", err)
	}
	if err := s.Engine.Remove(ctx, id); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func testKill(ctx context.Context, t *testing.T, s *Suite) {
	dir, mount := Shared(t)
	spec := s.Spec("sleep", "/out")
	spec.Mounts = []engine.Mount{mount}
	id := s.Run(ctx, t, spec)
	WaitFile(ctx, t, filepath.Join(dir, "ready")) // before, TERM would end it
	c, err := s.Engine.Inspect(ctx, id)
	if err != nil || c.State != engine.StateRunning || c.PID == 0 {
		t.Fatalf("running: %+v, %v", c, err)
	}
	if err := s.Engine.Start(ctx, id); err != nil {
		t.Errorf("start of a running container: %v", err)
	}
	if err := s.Engine.Kill(ctx, id, "SIGTERM"); err != nil {
		t.Errorf("TERM: %v", err)
	}
	if err := s.Engine.Kill(ctx, id, "KILL"); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Engine.Wait(ctx, id); code != 137 || err != nil {
		t.Errorf("wait: %d, %v", code, err)
	}
}

func testStop(ctx context.Context, t *testing.T, s *Suite) {
	for mode, want := range map[string]int{"term": 0, "sleep": 137} {
		dir, mount := Shared(t)
		spec := s.Spec(mode, "/out")
		spec.Mounts = []engine.Mount{mount}
		id := s.Run(ctx, t, spec)
		WaitFile(ctx, t, filepath.Join(dir, "ready"))
		if err := s.Engine.Stop(ctx, id, time.Second); err != nil {
			t.Errorf("stop %s: %v", mode, err)
		}
		if code, err := s.Engine.Wait(ctx, id); code != want || err != nil {
			t.Errorf("%s: exit %d, %v; want %d", mode, code, err, want)
		}
	}
}

func testWait(ctx context.Context, t *testing.T, s *Suite) {
	id := s.Run(ctx, t, s.Spec("sleep"))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Engine.Wait(short, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait beyond the context: %v", err)
	}
	type result struct {
		code int
		err  error
	}
	results := make(chan result, 3)
	for range cap(results) {
		go func() {
			code, err := s.Engine.Wait(ctx, id)
			results <- result{code, err}
		}()
	}
	if err := s.Engine.Kill(ctx, id, "KILL"); err != nil {
		t.Fatal(err)
	}
	for range cap(results) {
		if r := <-results; r.code != 137 || r.err != nil {
			t.Errorf("wait: %+v", r)
		}
	}
}

func testRemove(ctx context.Context, t *testing.T, s *Suite) {
	id := s.Run(ctx, t, s.Spec("sleep"))
	ended := make(chan error, 1)
	go func() {
		_, err := s.Engine.Wait(ctx, id)
		ended <- err
	}()
	began := time.Now()
	if err := s.Engine.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("remove waited %v for a process that ignores TERM", took)
	}
	if err := <-ended; err != nil && !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("wait for a removed container: %v", err)
	}
	if err := s.Engine.Remove(ctx, id); err != nil {
		t.Errorf("remove again: %v", err)
	}
}
