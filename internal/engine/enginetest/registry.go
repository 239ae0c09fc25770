package enginetest

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Offer puts an image of Rootfs into a registry that the engine under test can
// ask, without TLS, and gives its whole name; the image that was pulled goes with
// the test.
func (s *Suite) Offer(t *testing.T, repository string, o Offer) string {
	t.Helper()
	var ref string
	if fake, ok := s.Engine.(*Fake); ok {
		ref = "registry.test/" + repository
		o.Archive = Archive(Rootfs([]byte("probe")), ref)
		fake.Offer(ref, o)
	} else {
		ref = serveOffer(t, repository, o)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Limit)
		defer cancel()
		if err := s.Engine.ImageRemove(ctx, ref); err != nil {
			t.Errorf("removing %s: %v", ref, err)
		}
	})
	return ref
}

// offered is a registry on loopback with one image.
type offered struct {
	inner http.Handler
	offer Offer
	open  atomic.Bool // the image is being put there
	layer string      // its digest
}

func serveOffer(t *testing.T, repository string, o Offer) string {
	t.Helper()
	layer := static.NewLayer(Rootfs([]byte("offered "+repository)), types.DockerUncompressedLayer)
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	g := &offered{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0))), offer: o, layer: digest.String()}
	server := httptest.NewServer(g)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	full := strings.TrimPrefix(server.URL, "http://") + "/" + repository
	ref, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	g.open.Store(true)
	defer g.open.Store(false)
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return full
}

// ServeHTTP implements http.Handler.
func (g *offered) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if login := g.offer.Login; login != nil && !g.open.Load() {
		if user, password, _ := r.BasicAuth(); user != login.Username || password != login.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
	}
	if g.offer.Gate != nil && !g.open.Load() && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+g.layer) {
		select {
		case <-g.offer.Gate:
		case <-r.Context().Done():
			return
		}
	}
	g.inner.ServeHTTP(w, r)
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// mayPull reports whether a login is the one that an offer asks for.
func (o Offer) mayPull(l *engine.Login) bool {
	return o.Login == nil || l != nil && *l == *o.Login
}
