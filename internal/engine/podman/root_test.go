package podman

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// testRoot starts a container that has ended again: what it wrote into its root
// file system is there, with ids of its own too.
func testRoot(t *testing.T, s *enginetest.Suite, info engine.Info) {
	ctx, cancel := context.WithTimeout(t.Context(), enginetest.Limit)
	defer cancel()
	namespaces := map[string]engine.UserNS{"the engine's ids": {}}
	if info.Rootless {
		namespaces["keep-id"] = engine.UserNS{KeepID: true, UID: 1000, GID: 1000}
	} else if info.MapsImages {
		namespaces["ids of its own"] = enginetest.OwnIDs()
	}
	for name, ns := range namespaces {
		out, mount := enginetest.Shared(t)
		spec := s.Spec("count", "/out")
		spec.Mounts, spec.UserNS, spec.ReadOnlyRoot = []engine.Mount{mount}, ns, false
		id := s.Create(ctx, t, spec)
		for _, want := range []string{"x", "xx", "xxx"} {
			if err := s.Engine.Start(ctx, id); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if code, err := s.Engine.Wait(ctx, id); code != 0 || err != nil {
				t.Fatalf("%s: exit %d, %v", name, code, err)
			}
			if got, err := os.ReadFile(filepath.Join(out, "count")); string(got) != want || err != nil {
				t.Errorf("%s: counted %q, %v; want %q", name, got, err, want)
			}
		}
	}
}
