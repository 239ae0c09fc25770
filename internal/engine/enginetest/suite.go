package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// TestLabel marks the containers of a test; its value is the test's own.
const TestLabel = "stromboli.test"

// Limit bounds a single test's calls.
const Limit = 2 * time.Minute

// Suite is an engine under test.
type Suite struct {
	Engine engine.Engine
	Image  string      // of Rootfs with BuildProbe's program, loaded by Load
	Secret SecretMaker // of this engine
	label  string
}

// Load puts the test image into e under a name of its own, removed with the
// test, and makes a suite.
func Load(tb testing.TB, e engine.Engine, probe []byte) *Suite {
	tb.Helper()
	s := &Suite{Secret: secretsOf(e), Engine: e, Image: "localhost/stromboli-test/" + strings.ToLower(rand.Text()[:10]) + ":1", label: rand.Text()}
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	names, err := e.ImageLoad(ctx, bytes.NewReader(Archive(Rootfs(probe), s.Image)))
	if err != nil || !slices.Equal(names, []string{s.Image}) {
		tb.Fatalf("load the test image: %v %v", names, err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Limit)
		defer cancel()
		s.Sweep(ctx, tb)
		if err := e.ImageRemove(ctx, s.Image); err != nil {
			tb.Errorf("remove the test image: %v", err)
		}
	})
	return s
}

// Sweep removes all containers of the suite.
func (s *Suite) Sweep(ctx context.Context, tb testing.TB) {
	tb.Helper()
	left, err := s.Engine.List(ctx, map[string]string{TestLabel: s.label})
	if err != nil {
		tb.Errorf("list the test's containers: %v", err)
	}
	for _, c := range left {
		if err := s.Engine.Remove(ctx, c.ID); err != nil {
			tb.Errorf("remove the test's container %s: %v", c.Name, err)
		}
	}
}

// Labels are the suite's label and more.
func (s *Suite) Labels(more ...string) map[string]string {
	labels := map[string]string{TestLabel: s.label}
	for i := 0; i+1 < len(more); i += 2 {
		labels[more[i]] = more[i+1]
	}
	return labels
}

// Spec is a hardened container that runs the probe with args.
func (s *Suite) Spec(args ...string) engine.ContainerSpec {
	return engine.ContainerSpec{
		Name: "stromboli-test-" + strings.ToLower(rand.Text()[:12]), Image: s.Image, Labels: s.Labels(),
		Command: append([]string{"/probe"}, args...), User: "0:0", ReadOnlyRoot: true, NoNewPrivileges: true,
		CapDrop: []string{"all"}, CapAdd: []string{"SETUID", "SETGID", "KILL"},
		MemoryBytes: 128 << 20, NanoCPUs: 1_000_000_000, CPUShares: 512, PidsLimit: 64,
	}
}

// Create creates spec's container.
func (s *Suite) Create(ctx context.Context, tb testing.TB, spec engine.ContainerSpec) string {
	tb.Helper()
	c, err := s.Engine.Create(ctx, spec)
	if err != nil {
		tb.Fatalf("create: %v", err)
	}
	return c.ID
}

// Run creates and starts spec's container.
func (s *Suite) Run(ctx context.Context, tb testing.TB, spec engine.ContainerSpec) string {
	tb.Helper()
	id := s.Create(ctx, tb, spec)
	if err := s.Engine.Start(ctx, id); err != nil {
		tb.Fatalf("start: %v", err)
	}
	return id
}

// Shared makes a directory that a container may write to, whoever it runs as,
// mounted at /out.
func Shared(tb testing.TB) (string, engine.Mount) {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		tb.Fatal(err)
	}
	// A rootless container's root must get there as well.
	for up := filepath.Dir(dir); strings.HasPrefix(up, os.TempDir()+"/"); up = filepath.Dir(up) {
		_ = os.Chmod(up, 0o755)
	}
	return dir, engine.Mount{Source: dir, Target: "/out"}
}

// WaitFor polls cond until it holds.
func WaitFor(ctx context.Context, tb testing.TB, what string, cond func() bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("never came: %s", what)
		}
	}
}

// WaitFile waits for a file.
func WaitFile(ctx context.Context, tb testing.TB, path string) {
	tb.Helper()
	WaitFor(ctx, tb, path, func() bool { _, err := os.Stat(path); return err == nil })
}
