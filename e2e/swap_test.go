package e2e_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/idmap"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// swapCLI and swapEgress are what a sandbox needs that runs no agent.
type swapCLI struct{}

func (swapCLI) Build(ctx context.Context, libc string) (dir, loader string, err error) {
	cli, err := setup.CLI(ctx, setup.Config{CacheDir: suite.cache, Env: os.Environ(), Libc: libc})
	return cli.Path, "", err
}

type swapEgress struct{}

func (swapEgress) Add(context.Context, sandbox.Door) error { return nil }
func (swapEgress) Remove(context.Context, string) error    { return nil }

// manager makes sandboxes without a server, as a server would, on an engine that
// may be another than the suite's. The server must have been started once: it
// installs the shim.
func (s *server) manager(t *testing.T, on engine.Engine) (m *sandbox.Manager, data string, info engine.Info) {
	t.Helper()
	shims, err := filepath.Glob(filepath.Join(s.data, "shim", "*", "stromboli-shim"))
	if err != nil || len(shims) != 1 {
		t.Fatalf("shims: %v, %v", shims, err)
	}
	if info, err = suite.engine.Info(s.ctx()); err != nil {
		t.Fatal(err)
	}
	same, _ := idmap.SameMounts(suite.engine.PID())
	data = filepath.Join(s.dir, "own")
	return sandbox.New(sandbox.Config{
		Engine: on, Info: info, DataDir: data, Instance: "own-" + filepath.Base(s.dir), Shim: shims[0], CLI: swapCLI{}, Egress: swapEgress{},
		Volumes: []string{s.volumes}, OrphanTimeout: time.Minute, AllowUnenforced: true, UserNS: true, SameMounts: same, Logger: slog.New(slog.DiscardHandler),
	}), data, info
}

// TestSwappedVolume: a volume that becomes another directory between the check
// and the mount is noticed before an agent starts. The test sits in between,
// so it makes sandboxes without a server.
func TestSwappedVolume(t *testing.T) {
	s := start(t) // for the shim that it installs
	m, data, _ := s.manager(t, suite.engine)
	outside := filepath.Join(s.dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, swap := range map[string]func(dir string) error{
		"untouched": func(string) error { return nil },
		"another directory": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o755))
		},
		"a link to outside": func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".old"), os.Symlink(outside, dir))
		},
		"a link to the same": func(dir string) error { // leads to what was checked, so it may
			return errors.Join(os.Rename(dir, dir+".old"), os.Symlink(dir+".old", dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(s.volumes, filepath.Base(t.Name()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			plan := policy.Plan{
				Workdir: "/workspace", Image: suite.image, MemoryBytes: 256 << 20, NanoCPUs: 1e9,
				Mounts: []policy.Mount{{Source: dir, Target: "/data", ReadOnly: true, Field: "podman.volumes[0]"}},
			}
			checked, err := m.Check(s.ctx(), plan)
			if err != nil {
				t.Fatal(err)
			}
			id := stromboli.NewSandboxID()
			box, err := m.Create(s.ctx(), sandbox.Spec{
				ID: id, RunID: "run-swap", SessionID: uuid.NewString(), Plan: plan, Checked: checked,
				BeforeStart: func(sandbox.Home) error { return swap(dir) },
			})
			if box != nil {
				defer func() {
					if err := m.Discard(context.WithoutCancel(s.ctx()), id); err != nil {
						t.Error(err)
					}
				}()
			}
			if name == "untouched" || name == "a link to the same" {
				if err != nil {
					t.Errorf("the same directory was refused: %v", err)
				}
				return
			}
			if !errors.Is(err, stromboli.NotEnforced) {
				t.Errorf("the swap went unnoticed: %v", err)
			}
			if left, err := m.Left(s.ctx()); left != 0 || err != nil {
				t.Errorf("%d containers are left, %v", left, err)
			}
			if left, _ := filepath.Glob(filepath.Join(data, "sb", "*")); len(left) != 0 { // the pattern is valid
				t.Errorf("directories are left: %v", left)
			}
		})
	}
}
