// Package e2e_test runs the real program against real Podman and the real
// agent CLI; only the model is scripted. Nothing in here is a mock.
package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// shared is what all tests of this process use.
type shared struct {
	bin      string // the program under test
	root     string // short: unix socket paths lie below it
	cache    string
	image    string
	engine   *podman.Client
	rootless bool
	contract *contract
}

var suite shared //nolint:gochecknoglobals // set once by TestMain

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := suite.open(ctx); err != nil {
		if os.Getenv("STROMBOLI_TEST_REQUIRE") != "podman" && errors.Is(err, errUnprepared) {
			fmt.Fprintln(os.Stderr, "skipping the end-to-end tests:", err)
			return 0
		}
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		suite.close()
		return 1
	}
	defer suite.close()
	return m.Run()
}

var errUnprepared = errors.New("this machine is not prepared")

func (s *shared) open(ctx context.Context) error {
	s.rootless = os.Geteuid() != 0
	s.bin = os.Getenv("STROMBOLI_TEST_BIN")
	if s.bin == "" {
		s.bin, _ = filepath.Abs("../bin/stromboli")
	}
	if _, err := os.Stat(s.bin); err != nil {
		return fmt.Errorf("%w: no program to test: run `make build`", errUnprepared)
	}
	if _, err := exec.LookPath("podman"); err != nil {
		return fmt.Errorf("%w: no podman: run `make test`", errUnprepared)
	}
	var err error
	if s.cache, err = setup.DefaultCacheDir(os.Environ()); err != nil {
		return err
	}
	// Another Podman than the host's own (`make test-podman5`) sees one directory
	// of the host's, at the same path.
	place := os.Getenv("STROMBOLI_TEST_ROOT")
	if place == "" {
		place = "/tmp"
	}
	if s.root, err = os.MkdirTemp(place, "se2e"); err != nil {
		return err
	}
	if s.engine, err = podman.Open(ctx, podman.OpenConfig{
		Host: os.Getenv("STROMBOLI_TEST_HOST"),
		Dir:  filepath.Join(s.root, "engine"), AllowOwnService: true, Environ: os.Environ(), Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		return err
	}
	base := setup.Config{CacheDir: s.cache, Env: os.Environ()}
	argv, env := s.engine.CLIArgs()
	image, err := setup.AgentImage(ctx, setup.ImageConfig{Config: base, Podman: argv, PodmanEnv: env})
	if err != nil {
		return fmt.Errorf("the agent image: %w", err)
	}
	s.image = image.Name
	s.contract, err = newContract()
	return err
}

func (s *shared) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if s.engine != nil {
		if err := s.engine.StopService(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the engine's service:", err)
		}
	}
	if s.root == "" {
		return
	}
	if s.rootless { // a store's layers belong to the user's subordinate ids
		_ = exec.CommandContext(ctx, "podman", "unshare", "rm", "-rf", s.root).Run()
	}
	if err := os.RemoveAll(s.root); err != nil {
		fmt.Fprintln(os.Stderr, "removing", s.root+":", err)
	}
}
