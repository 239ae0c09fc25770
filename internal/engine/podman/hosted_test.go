package podman

import (
	"log/slog"
	"os"
	"testing"

	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// hostEnv names the service of another Podman for TestHosted, and
// hostVersion what it must be.
const (
	hostEnv        = "STROMBOLI_TEST_HOST"
	hostVersionEnv = "STROMBOLI_TEST_HOST_VERSION"
)

// TestHosted runs the suite on a service that somebody else started, of another
// version than the host's own: `make test-podman5`.
func TestHosted(t *testing.T) {
	host := os.Getenv(hostEnv)
	if host == "" {
		t.Skip(hostEnv + " names no service")
	}
	c := openTest(t, OpenConfig{Host: host, Environ: os.Environ(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	s := enginetest.Load(t, c, probe(t))
	info, err := c.Info(t.Context())
	if err != nil || info.GraphDriver != "overlay" || info.Version != os.Getenv(hostVersionEnv) {
		t.Fatalf("info: %+v, %v", info, err)
	}
	t.Run("conformance", func(t *testing.T) { enginetest.Conformance(t, s) })
	t.Run("hardening", func(t *testing.T) { testHardening(t, s, info) })
	t.Run("limits", func(t *testing.T) { testLimits(t, s, info) })
	t.Run("hot path", func(t *testing.T) { testHotPath(t, s) })
}
