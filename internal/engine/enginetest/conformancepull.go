package enginetest

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// testRestart stops a container and starts it again.
func testRestart(ctx context.Context, t *testing.T, s *Suite) {
	dir, mount := Shared(t)
	spec := s.Spec("sleep", "/out")
	spec.Mounts, spec.ReadOnlyRoot = []engine.Mount{mount}, false
	id := s.Run(ctx, t, spec)
	for range 2 {
		waitReady(ctx, t, dir)
		if err := s.Engine.Stop(ctx, id, 0); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Engine.Inspect(ctx, id); err != nil || c.State != engine.StateExited || c.ExitCode != 137 || c.PID != 0 {
			t.Errorf("stopped: %+v, %v", c, err)
		}
		if err := s.Engine.Start(ctx, id); err != nil {
			t.Fatalf("start again: %v", err)
		}
		if c, err := s.Engine.Inspect(ctx, id); err != nil || c.State != engine.StateRunning || c.PID == 0 {
			t.Errorf("started again: %+v, %v", c, err)
		}
	}
	waitReady(ctx, t, dir)
}

// waitReady waits for a container's word, and takes it.
func waitReady(ctx context.Context, t *testing.T, dir string) {
	t.Helper()
	WaitFile(ctx, t, filepath.Join(dir, "ready"))
	removeFile(t, filepath.Join(dir, "ready"))
}

// testPull pulls from a registry.
func testPull(ctx context.Context, t *testing.T, s *Suite) {
	e := s.Engine
	ref := s.Offer(t, "pulled:1", Offer{})
	var stages []engine.PullProgress
	id, err := e.ImagePull(ctx, engine.Pull{Ref: ref, Insecure: true}, func(p engine.PullProgress) { stages = append(stages, p) })
	if err != nil || id == "" {
		t.Fatalf("pull: %q, %v", id, err)
	}
	if i, err := e.ImageInspect(ctx, ref); err != nil || i.ID != id || !slices.Contains(i.Names, ref) {
		t.Errorf("pulled %s: %+v, %v", id, i, err)
	}
	if n := len(stages); n == 0 || stages[n-1].Layers < 1 || stages[n-1].Stage != engine.PullStoring {
		t.Errorf("progress: %+v", stages)
	}
	if !slices.IsSortedFunc(stages, func(a, b engine.PullProgress) int { return int(a.Stage - b.Stage) }) {
		t.Errorf("progress goes back: %+v", stages)
	}
	if again, err := e.ImagePull(ctx, engine.Pull{Ref: ref, Insecure: true}, nil); again != id || err != nil {
		t.Errorf("pull again: %q, %v", again, err)
	}

	missing := strings.TrimSuffix(ref, "pulled:1") + "missing:1"
	if _, err := e.ImagePull(ctx, engine.Pull{Ref: missing, Insecure: true}, nil); !errors.Is(err, engine.ErrImageMissing) {
		t.Errorf("pull what is not there: %v", err)
	}
	login := &engine.Login{Username: "user", Password: "pass:word"}
	locked := s.Offer(t, "locked:1", Offer{Login: login})
	for name, wrong := range map[string]*engine.Login{"without a login": nil, "with another": {Username: "user", Password: "other"}} {
		if _, err := e.ImagePull(ctx, engine.Pull{Ref: locked, Insecure: true, Login: wrong}, nil); !errors.Is(err, engine.ErrDenied) {
			t.Errorf("pull %s: %v", name, err)
		}
	}
	if _, err := e.ImagePull(ctx, engine.Pull{Ref: locked, Insecure: true, Login: login}, nil); err != nil {
		t.Errorf("pull with a login: %v", err)
	}

	gate := make(chan struct{})
	held := s.Offer(t, "held:1", Offer{Gate: gate})
	cut, end := context.WithCancel(ctx)
	_, err = e.ImagePull(cut, engine.Pull{Ref: held, Insecure: true}, func(p engine.PullProgress) {
		if p.Stage == engine.PullCopying {
			end()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a pull that was cut off: %v", err)
	}
	close(gate)
	if there, err := e.ImageExists(ctx, held); there || err != nil {
		t.Errorf("a pull that was cut off has left the image: %v, %v", there, err)
	}
}

// testSearch asks a registry.
func testSearch(ctx context.Context, t *testing.T, s *Suite) {
	ref := s.Offer(t, "searched:1", Offer{})
	name := strings.TrimSuffix(ref, ":1")
	host, _, _ := strings.Cut(ref, "/")
	found, err := s.Engine.ImageSearch(ctx, engine.Search{Term: name, Registry: host, Limit: 5, Insecure: true})
	if err != nil || len(found) == 0 || len(found) > 5 || !slices.ContainsFunc(found, func(f engine.FoundImage) bool { return strings.Contains(f.Name, "searched") }) {
		t.Errorf("search for %s: %+v, %v", name, found, err)
	}
}
