// Package image keeps what the server knows of images: which are on this
// machine and how well agents fare in them, what registries have, and the pulls
// that are going on.
//
// It promises that an image is pulled once however many ask for it at the same
// time, that nothing is pulled which the operator's patterns don't allow, and
// that no registry is asked but those that they name and Docker Hub. What an
// image is good for is told from the image, never from its name.
package image

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// Engine is what a Library needs of a container engine.
type Engine interface {
	ImageInspect(ctx context.Context, ref string) (engine.Image, error)
	ImageList(ctx context.Context) ([]engine.Image, error)
	ImagePull(ctx context.Context, p engine.Pull, progress func(engine.PullProgress)) (string, error)
	ImageSearch(ctx context.Context, s engine.Search) ([]engine.FoundImage, error)
}

// Facts tells what was found by looking into images.
type Facts interface {
	// KnownFacts returns the facts about an image that was looked into before, by
	// its digest, or its id where it has none. It is fast.
	KnownFacts(key string) (stromboli.ImageFacts, bool)
	// FindFacts returns the facts about an image on this machine and looks into
	// it if nobody has, which takes a tenth of a second or more.
	FindFacts(ctx context.Context, image string) (stromboli.ImageFacts, error)
}

// Config is what a Library needs.
type Config struct {
	Engine   Engine
	Facts    Facts
	Patterns policy.ImagePatterns // what may be pulled; none: nothing
	// Insecure are registries, as host or host:port, that are spoken to without
	// TLS, or without checking its certificate. Those on loopback always are.
	Insecure []string
	// AuthFiles hold logins, in the order in which they are looked into.
	AuthFiles []string
	// PullTimeout bounds one pull.
	PullTimeout time.Duration
	// Room refuses pulls while free space is scarce; nil: never.
	Room func() error
	// LookTime bounds how long a list looks into images that nobody has looked
	// into; 3 s.
	LookTime time.Duration
	Log      *slog.Logger
}

// Library is the images. Close ends its pulls.
type Library struct {
	cfg   Config
	rules atomic.Pointer[policy.ImagePatterns] // what may be pulled
	slots chan struct{}                        // pulls at the same time

	base context.Context // of the pulls
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	flights map[string]*flight // pulls that may be joined
	closed  bool
}

// maxPulls is how many images are pulled at the same time; more only share the
// network and the disk.
const maxPulls = 4

// New returns a Library. It starts nothing.
func New(cfg Config) *Library {
	if cfg.LookTime == 0 {
		cfg.LookTime = 3 * time.Second
	}
	base, end := context.WithCancel(context.Background())
	l := &Library{cfg: cfg, slots: make(chan struct{}, maxPulls), base: base, end: end, flights: make(map[string]*flight)}
	l.SetPatterns(cfg.Patterns)
	return l
}

// SetPatterns says what may be pulled from now on; pulls that go on aren't ended.
func (l *Library) SetPatterns(p policy.ImagePatterns) { l.rules.Store(&p) }

// Close ends all pulls and waits for them.
func (l *Library) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.work.Wait()
}

// List returns the images on this machine by their names, the best first. Into
// those that are new it looks as long as LookTime allows; the next call goes on.
func (l *Library) List(ctx context.Context) ([]stromboli.Image, error) {
	images, err := l.cfg.Engine.ImageList(ctx)
	if err != nil {
		return nil, engineError(err)
	}
	until := time.Now().Add(l.cfg.LookTime)
	var out []stromboli.Image
	for _, i := range images {
		if len(i.Names) == 0 {
			continue
		}
		facts, known := l.cfg.Facts.KnownFacts(cmp.Or(i.Digest, i.ID))
		if !known && time.Now().Before(until) {
			// A fault of one image, which may be gone by now, is none of the list.
			if facts, err = l.cfg.Facts.FindFacts(ctx, i.ID); err == nil {
				known = true
			} else if errors.Is(err, stromboli.EngineDown) || ctx.Err() != nil {
				return nil, err
			}
		}
		for _, name := range i.Names {
			described := describe(i, facts, known)
			described.Repository, described.Tag = splitName(name)
			out = append(out, described)
		}
	}
	slices.SortFunc(out, func(a, b stromboli.Image) int {
		return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Tag, b.Tag))
	})
	return out, nil
}

// Get returns an image on this machine; stromboli.NotFound where it isn't.
func (l *Library) Get(ctx context.Context, name string) (stromboli.Image, error) {
	missing := stromboli.Errorf(stromboli.NotFound, "there is no image %q on this machine", name)
	if !plausible(name) {
		return stromboli.Image{}, missing
	}
	i, err := l.cfg.Engine.ImageInspect(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		// What the engine's configuration doesn't complete is Docker Hub's.
		full, perr := policy.ParseImageName(name)
		if perr != nil {
			return stromboli.Image{}, missing
		}
		i, err = l.cfg.Engine.ImageInspect(ctx, full.String())
	}
	switch {
	case errors.Is(err, engine.ErrNotFound), errors.Is(err, engine.ErrInvalid):
		return stromboli.Image{}, missing
	case err != nil:
		return stromboli.Image{}, engineError(err)
	}
	facts, err := l.cfg.Facts.FindFacts(ctx, i.ID)
	if err != nil {
		if errors.Is(err, stromboli.ImageMissing) { // removed at this moment
			return stromboli.Image{}, missing
		}
		return stromboli.Image{}, err
	}
	out := describe(i, facts, true)
	out.Repository, out.Tag = splitName(meant(i.Names, name))
	return out, nil
}

// plausible keeps from the engine what can't be a name or an id.
func plausible(name string) bool {
	return name != "" && len(name) <= 512 && !strings.HasPrefix(name, "-") && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune("?#%\\\"'", r)
	})
}

// splitName takes repository and tag apart.
func splitName(name string) (repository, tag string) {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i], name[i+1:]
	}
	return name, ""
}

// meant is which of an image's names the caller means.
func meant(names []string, asked string) string {
	if len(names) == 0 {
		return ""
	}
	for _, asked := range []string{asked, asked + ":latest"} {
		for _, n := range names {
			if n == asked || strings.HasSuffix(n, "/"+asked) {
				return n
			}
		}
	}
	return names[0]
}

// Search asks a registry for images: the one that the term begins with, else
// Docker Hub. stromboli.RegistryFailed when it gives no answer.
func (l *Library) Search(ctx context.Context, q stromboli.ImageQuery) ([]stromboli.FoundImage, error) {
	term, registry, err := l.searchTerm(q.Term)
	if err != nil {
		return nil, err
	}
	login, err := l.login(registry)
	if err != nil {
		return nil, err
	}
	found, err := l.cfg.Engine.ImageSearch(ctx, engine.Search{Term: term, Limit: q.Limit, Registry: registry, Login: login, Insecure: l.insecure(registry)})
	if err != nil {
		return nil, l.pullError("searching "+registry, registry, err)
	}
	out := make([]stromboli.FoundImage, 0, len(found))
	for _, f := range found[:min(len(found), q.Limit)] {
		if !q.NoTrunc {
			f.Description = shorten(f.Description, 44)
		}
		out = append(out, stromboli.FoundImage(f))
	}
	return out, nil
}

func (l *Library) searchTerm(term string) (full, registry string, err error) {
	if !plausible(term) || strings.Contains(term, "//") || strings.HasPrefix(term, "/") {
		return "", "", stromboli.FieldError("q", "must be 1 to 512 visible characters, such as python or ghcr.io/org/tool")
	}
	first, _, deep := strings.Cut(term, "/")
	if !deep || first != "localhost" && !strings.ContainsAny(first, ".:") {
		return dockerHub + "/" + term, dockerHub, nil
	}
	if !l.rules.Load().Registry(first) {
		e := stromboli.FieldError("q", "the registry %s is named by no pattern of %s", first, policy.ImagePatternsSetting)
		e.Code = stromboli.ImageForbidden
		return "", "", e
	}
	return term, first, nil
}

const dockerHub = "docker.io"

func shorten(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return s
}
