package e2e_test

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

const (
	registryUser     = "pusher"
	registryPassword = "registry-pass:word"
)

// imageRegistry is a registry on loopback. Whatever is pulled from it is removed
// after the test.
type imageRegistry struct {
	t    *testing.T
	host string

	inner http.Handler

	mu    sync.Mutex
	locks bool            // it asks for a login
	cuts  int             // layers to be cut in their middle; negative: all
	hold  <-chan struct{} // layers are held until it is closed
	left  int             // held layers whose client has gone
	asked map[string]int  // manifests by repository
}

func startRegistry(t *testing.T) *imageRegistry {
	t.Helper()
	enginetest.RequirePodman(t)
	g := &imageRegistry{t: t, asked: map[string]int{}, inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	s := httptest.NewServer(g)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	g.host = strings.TrimPrefix(s.URL, "http://")
	t.Cleanup(g.removeImages)
	return g
}

// ServeHTTP implements http.Handler.
func (g *imageRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	locked := g.locks
	if repository, _, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok && r.Method == http.MethodGet {
		g.asked[repository]++
	}
	g.mu.Unlock()
	if user, password, _ := r.BasicAuth(); locked && (user != registryUser || password != registryPassword) {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	}
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		g.serveBlob(w, r)
		return
	}
	g.inner.ServeHTTP(w, r)
}

// serveBlob serves what is stored; with a layer it may take its time, or break.
func (g *imageRegistry) serveBlob(w http.ResponseWriter, r *http.Request) {
	stored := httptest.NewRecorder()
	g.inner.ServeHTTP(stored, r)
	body := stored.Body.Bytes()
	if stored.Code < 300 && len(body) > 100<<10 {
		g.mu.Lock()
		hold, cut := g.hold, g.cuts != 0
		if g.cuts > 0 {
			g.cuts--
		}
		g.mu.Unlock()
		if cut {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		if hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
				g.set(func(g *imageRegistry) { g.left++ })
				return
			}
		}
	}
	for name, values := range stored.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(stored.Code)
	_, _ = w.Write(body)
}

// removeImages removes everything of this registry from the engine's store.
func (g *imageRegistry) removeImages() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := suite.engine.ImageList(ctx)
	if err != nil {
		g.t.Errorf("listing images: %v", err)
	}
	for _, i := range list {
		for _, ref := range append(i.Names, i.DigestNames...) {
			if strings.HasPrefix(ref, g.host+"/") {
				if err := suite.engine.ImageRemove(ctx, ref); err != nil {
					g.t.Errorf("removing the test's image: %v", err)
				}
			}
		}
	}
}

func (g *imageRegistry) set(change func(*imageRegistry)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g)
}

// count is how often a repository's manifests were asked for.
func (g *imageRegistry) count(repository string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[repository]
}

// madeImage is an image to be made.
type madeImage struct {
	root   []byte // a tar
	mark   string // adds a layer that no other image has
	arch   string // default: this machine's
	labels map[string]string
}

func (m madeImage) build(t *testing.T) v1.Image {
	t.Helper()
	layers := []v1.Layer{static.NewLayer(m.root, types.DockerUncompressedLayer)} // compressing takes a race-enabled test seconds
	if m.mark != "" {
		layers = append(layers, static.NewLayer(rootOf(t, "mark-"+m.mark), types.DockerUncompressedLayer))
	}
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", m.arch
	if m.arch == "" {
		config.Architecture = runtime.GOARCH
	}
	config.Config.Labels, config.Config.Env = m.labels, []string{"PATH=/usr/bin:/bin"}
	config.Created = v1.Time{Time: time.Unix(1_700_000_000, 0)}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image there and gives its whole name.
func (g *imageRegistry) push(repository string, m madeImage) string {
	g.t.Helper()
	full := g.host + "/" + repository
	ref, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := remote.Write(ref, m.build(g.t), remote.WithAuth(&authn.Basic{Username: registryUser, Password: registryPassword})); err != nil {
		g.t.Fatal(err)
	}
	return full
}

// pushIndex puts an image there that is for other architectures alone.
func (g *imageRegistry) pushIndex(repository string, images ...madeImage) string {
	g.t.Helper()
	full := g.host + "/" + repository
	ref, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		g.t.Fatal(err)
	}
	var index v1.ImageIndex = empty.Index
	for _, m := range images {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: m.build(g.t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: m.arch}},
		})
	}
	if err := remote.WriteIndex(ref, index, remote.WithAuth(&authn.Basic{Username: registryUser, Password: registryPassword})); err != nil {
		g.t.Fatal(err)
	}
	return full
}
