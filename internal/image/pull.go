package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// flight is one pull, for however many wait for it. Its fields are guarded by
// the library's mu, save for those that are set once.
type flight struct {
	key    string
	name   policy.ImageName
	spec   engine.Pull
	cancel context.CancelFunc
	done   chan struct{} // closed at the end; id and err are set by then
	id     string
	err    error

	waiters  int
	keep     bool // it goes on when nobody waits
	progress stromboli.ImageProgress
	changed  chan struct{} // closed and replaced when progress changes
}

// errUnwanted ends a pull for which nobody waits any more.
var errUnwanted = errors.New("nobody waits for the pull any more")

// Pull fetches an image from its registry, also where an older one of that name
// is here, and returns when it is on this machine. Whoever asks while it is
// being pulled waits for that pull. progress, if not nil, is called by this
// goroutine, the first time at once; it learns the newest state and not each
// that there was. When ctx ends the pull ends too, unless others wait for it or
// wish it kept.
//
// What the patterns don't allow is stromboli.ImageForbidden, what the registry
// doesn't have stromboli.NotFound, and a fault on the way to it
// stromboli.RegistryFailed.
func (l *Library) Pull(ctx context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error) {
	if progress == nil {
		progress = func(stromboli.ImageProgress) {}
	}
	name, spec, err := l.wanted(w)
	if err != nil {
		return stromboli.PulledImage{}, err
	}
	f, err := l.join(name, spec, w.Keep) //nolint:contextcheck // the pull is its callers' in common
	if err != nil {
		return stromboli.PulledImage{}, err
	}
	defer l.leave(f)
	for {
		l.mu.Lock()
		now, changed := f.progress, f.changed
		l.mu.Unlock()
		progress(now)
		select {
		case <-f.done:
			if f.err != nil {
				return stromboli.PulledImage{}, f.err
			}
			return stromboli.PulledImage{Name: f.name.String(), ID: f.id}, nil
		case <-ctx.Done():
			return stromboli.PulledImage{}, fmt.Errorf("waiting for the pull of %s: %w", f.name, context.Cause(ctx))
		case <-changed:
		}
	}
}

var platformForm = regexp.MustCompile(`^([a-z0-9]{1,32})/([a-z0-9_]{1,32})(?:/([a-z0-9.]{1,32}))?$`)

// wanted judges a wish.
func (l *Library) wanted(w stromboli.ImageWish) (policy.ImageName, engine.Pull, error) {
	name, err := policy.ParseImageName(w.Name)
	if err != nil {
		return name, engine.Pull{}, stromboli.FieldError("image", "%v", err)
	}
	if err := l.rules.Load().MayPull("image", name); err != nil {
		return name, engine.Pull{}, err
	}
	if l.cfg.Room != nil {
		if err := l.cfg.Room(); err != nil {
			return name, engine.Pull{}, err
		}
	}
	spec := engine.Pull{Ref: name.String(), Insecure: l.insecure(name.Registry())}
	if w.Platform != "" {
		m := platformForm.FindStringSubmatch(w.Platform)
		if m == nil {
			return name, spec, stromboli.FieldError("platform", "must be os/architecture[/variant], such as linux/arm64")
		}
		spec.OS, spec.Architecture, spec.Variant = m[1], m[2], m[3]
	}
	return name, spec, nil
}

// insecure reports whether a registry is spoken to without TLS: what is on
// loopback can't be read or changed on the way.
func (l *Library) insecure(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback() ||
		slices.Contains(l.cfg.Insecure, registry) || slices.Contains(l.cfg.Insecure, host)
}

// maxFlights bounds the pulls that go on or wait.
const maxFlights = 64

// join takes part in a pull and begins it if nobody has.
func (l *Library) join(name policy.ImageName, spec engine.Pull, keep bool) (*flight, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, draining()
	}
	key := strings.Join([]string{spec.Ref, spec.OS, spec.Architecture, spec.Variant}, " ")
	f := l.flights[key]
	if f == nil {
		if len(l.flights) >= maxFlights {
			return nil, &stromboli.Error{Code: stromboli.QueueFull, Message: fmt.Sprintf("%d images are being pulled or wait for that; try again later", len(l.flights)), RetryAfter: 30 * time.Second}
		}
		ctx, cancel := context.WithCancel(l.base)
		f = &flight{
			key: key, name: name, spec: spec, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
			progress: stromboli.ImageProgress{Image: name.String(), Stage: stromboli.StageWaiting},
		}
		l.flights[key] = f
		l.work.Go(func() {
			defer cancel()
			id, err := l.fetch(ctx, f)
			l.mu.Lock()
			defer l.mu.Unlock()
			f.id, f.err = id, err
			if err != nil && f.waiters == 0 && !errors.Is(err, errUnwanted) { // nobody else is told
				l.cfg.Log.Warn("pulling an image failed", "image", spec.Ref, "error", err)
			}
			l.drop(f)
			close(f.done)
		})
	}
	f.waiters++
	f.keep = f.keep || keep
	return f, nil
}

// leave ends a pull that nobody wants any more. Who comes now begins another.
func (l *Library) leave(f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.waiters--; f.waiters == 0 && !f.keep {
		l.drop(f)
		f.cancel()
	}
}

// drop keeps others from joining a pull. l.mu is held.
func (l *Library) drop(f *flight) {
	if l.flights[f.key] == f {
		delete(l.flights, f.key)
	}
}

func (l *Library) tell(f *flight, p stromboli.ImageProgress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p.Image = f.progress.Image
	f.progress = p
	close(f.changed)
	f.changed = make(chan struct{})
}

// fetch waits for its turn and is the pull itself. Only the latter has a time
// limit: those before it have theirs.
func (l *Library) fetch(ctx context.Context, f *flight) (string, error) {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return "", l.failure(ctx, f, ctx.Err())
	}
	defer func() { <-l.slots }()
	ctx, cancel := context.WithTimeout(ctx, l.cfg.PullTimeout)
	defer cancel()
	begin := time.Now()
	id, err := l.ask(ctx, f)
	if err != nil {
		return "", l.failure(ctx, f, err)
	}
	l.cfg.Log.Info("pulled an image", "image", f.spec.Ref, "id", id, "took", time.Since(begin))
	return id, nil
}

// failure tells why a pull ended, as its callers are told.
func (l *Library) failure(ctx context.Context, f *flight, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return stromboli.Errorf(stromboli.RegistryFailed, "%s was not pulled within %s (STROMBOLI_AGENT_PULL_TIMEOUT)", f.name, l.cfg.PullTimeout).WithCause(err)
	case l.base.Err() != nil:
		return draining().WithCause(err)
	case ctx.Err() != nil:
		return errUnwanted
	case errors.Is(err, engine.ErrNotFound):
		platform := "this machine"
		if f.spec.OS != "" {
			platform = strings.TrimSuffix(f.spec.OS+"/"+f.spec.Architecture+"/"+f.spec.Variant, "/")
		}
		return stromboli.Errorf(stromboli.NotFound, "%s has no image %s for %s: %s", f.name.Registry(), f.name, platform, said(err)).WithCause(err)
	}
	return l.pullError("pulling "+f.name.String(), f.name.Registry(), err)
}

func draining() *stromboli.Error {
	return &stromboli.Error{Code: stromboli.Draining, Message: "the server is about to stop and pulls no images", RetryAfter: 5 * time.Second}
}

// login finds the login for a repository. What is wrong with the server's files
// is for its log.
func (l *Library) login(repository string) (*engine.Login, error) {
	login, err := findLogin(l.cfg.AuthFiles, repository)
	if err != nil {
		return nil, stromboli.Errorf(stromboli.RegistryFailed, "the server's logins for registries can't be used; its log says why").WithCause(err)
	}
	return login, nil
}

// ask pulls, again where the connection breaks.
func (l *Library) ask(ctx context.Context, f *flight) (string, error) {
	spec := f.spec
	var err error
	if spec.Login, err = l.login(f.name.Repository); err != nil {
		return "", err
	}
	for again := 1; ; again++ {
		id, err := l.attempt(ctx, f, spec)
		if again == pullAttempts || !errors.Is(err, engine.ErrInterrupted) {
			return id, err
		}
		l.cfg.Log.Warn("the pull of an image broke off and is begun again", "image", spec.Ref, "error", err)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Duration(again) * pullPause):
		}
	}
}

// A pull whose connection breaks is tried again, pullAttempts times in all,
// after a pause that grows.
const (
	pullAttempts = 3
	pullPause    = 500 * time.Millisecond
)

func (l *Library) attempt(ctx context.Context, f *flight, spec engine.Pull) (string, error) {
	l.tell(f, stromboli.ImageProgress{Stage: stromboli.StageResolving})
	return l.cfg.Engine.ImagePull(ctx, spec, func(p engine.PullProgress) {
		told := stromboli.ImageProgress{Stage: stromboli.StageResolving, Current: p.Layers}
		switch p.Stage {
		case engine.PullResolving:
		case engine.PullCopying:
			told.Stage = stromboli.StageDownloading
		case engine.PullStoring:
			told.Stage, told.Total = stromboli.StageStoring, p.Layers
		}
		l.tell(f, told)
	})
}

// pullError gives an error on the way to a registry the code that callers know,
// and says what to do.
func (l *Library) pullError(doing, registry string, err error) error {
	if coded, ok := errors.AsType[*stromboli.Error](err); ok {
		return coded
	}
	switch {
	case errors.Is(err, engine.ErrUnavailable), errors.Is(err, engine.ErrStorageFull):
		return engineError(err)
	case errors.Is(err, engine.ErrDenied):
		return stromboli.Errorf(stromboli.RegistryFailed, "%s: %s denies it: log in with `podman login %s` as the server's user, "+
			"or name a file with the login by REGISTRY_AUTH_FILE; an image that doesn't exist may be denied too: %s", doing, registry, registry, said(err)).WithCause(err)
	}
	return stromboli.Errorf(stromboli.RegistryFailed, "%s: the registry %s failed; try again later: %s", doing, registry, said(err)).WithCause(err)
}

// maxSaid bounds what an engine or a registry says in a message.
const maxSaid = 1000

// said are the engine's own words, on one line.
func said(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*engine.Error](err); ok {
		text = e.Message
	}
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "")), " ")
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + "…"
	}
	return text
}

// engineError gives an engine's error the code that callers know.
func engineError(err error) error {
	switch {
	case errors.Is(err, engine.ErrUnavailable):
		return (&stromboli.Error{Code: stromboli.EngineDown, Message: "the container engine doesn't answer", RetryAfter: 5 * time.Second}).WithCause(err)
	case errors.Is(err, engine.ErrStorageFull):
		return stromboli.Errorf(stromboli.StorageFull, "the container engine's disk is full: %w", err)
	}
	return err
}
