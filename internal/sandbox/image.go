package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// facts are what must be known of an image to run an agent in it. They are
// found once per digest, by a container that is never started, and kept on
// disk.
type facts struct {
	Format int // of this struct in a file
	Digest string
	// OS and Architecture are those that the image says it is for; empty where
	// it doesn't say.
	OS, Architecture string

	Glibc      bool   // the image has glibc's loader
	MuslLoader string // the path of musl's loader in the image, or empty
	Bash       bool
	Claude     bool // the image has an agent CLI of its own
	Passwd     string
	Group      string
	Env        []string

	// Paths holds what was asked of single paths so far.
	Paths map[string]pathFact
}

// factsFormat is raised when facts are added: older files are found out anew.
const factsFormat = 2

type pathFact struct {
	Directory bool   // there is one, or a link
	Symlink   string // the first symlink on the way, or empty
}

// maxPaths bounds what is kept of one image: callers choose the paths.
const maxPaths = 1000

func muslLoaderPath() string { return "/lib/ld-musl-" + muslArch() + ".so.1" }

func muslArch() string {
	if runtime.GOARCH == "arm64" {
		return "aarch64"
	}
	return "x86_64"
}

func glibcLoaderPath() string {
	if runtime.GOARCH == "arm64" {
		return "/lib/ld-linux-aarch64.so.1"
	}
	return "/lib64/ld-linux-x86-64.so.2"
}

// native reports whether the image's programs run on this machine's CPU.
func (f facts) native() bool {
	return (f.OS == "" || f.OS == "linux") && (f.Architecture == "" || f.Architecture == runtime.GOARCH)
}

// flaw says why the agent could do nothing in the image: it is for another CPU,
// or has no bash, which the agent's Bash tool needs. Empty: it can.
func (f facts) flaw() string {
	switch {
	case !f.native():
		return fmt.Sprintf("is for %s/%s, and this machine is linux/%s: use one that is built for it", cmp.Or(f.OS, "linux"), f.Architecture, runtime.GOARCH)
	case !f.Bash:
		return "has no bash, which the agent needs to run commands: add it to the image"
	}
	return ""
}

// usable refuses an image in which the agent could do nothing.
func (f facts) usable(image string) error {
	if flaw := f.flaw(); flaw != "" {
		return stromboli.Errorf(stromboli.ImageMissing, "image %s %s", image, flaw)
	}
	return nil
}

// public is what others may know of them.
func (f facts) public() stromboli.ImageFacts {
	out := stromboli.ImageFacts{CLI: f.Claude, Unusable: f.flaw()}
	switch {
	case f.Glibc:
		out.Libc = "glibc"
	case f.MuslLoader != "":
		out.Libc = "musl"
	}
	return out
}

// KnownFacts returns the facts about an image that was looked into before, by
// its digest, or its id where it has none.
func (m *Manager) KnownFacts(key string) (stromboli.ImageFacts, bool) {
	f, ok := m.facts.recall(key)
	return f.public(), ok
}

// FindFacts returns the facts about an image on this machine and looks into it
// if nobody has.
func (m *Manager) FindFacts(ctx context.Context, image string) (stromboli.ImageFacts, error) {
	f, err := m.facts.of(ctx, image)
	return f.public(), err
}

const maxPasswd = 1 << 20

// factCache finds facts and keeps them.
type factCache struct {
	engine   engine.Engine
	dir      string
	instance string

	looking sync.Mutex // held while an image is looked into: one at a time

	mu    sync.Mutex
	known map[string]facts // by digest; their maps are never changed
}

func newFactCache(e engine.Engine, dir, instance string) *factCache {
	return &factCache{engine: e, dir: dir, instance: instance, known: make(map[string]facts)}
}

// of returns the facts about an image on this machine.
func (c *factCache) of(ctx context.Context, image string) (facts, error) {
	info, err := c.inspect(ctx, image)
	if err != nil {
		return facts{}, err
	}
	return c.about(ctx, info)
}

// ErrImageAbsent is in the chain of an error about an image that is not on this
// machine.
var ErrImageAbsent = errors.New("no such image on this machine")

func (c *factCache) inspect(ctx context.Context, image string) (engine.Image, error) {
	info, err := c.engine.ImageInspect(ctx, image)
	if errors.Is(err, engine.ErrImageMissing) { // a short name is Docker Hub's, unless the engine knows better
		if full, perr := policy.ParseImageName(image); perr == nil && full.String() != image {
			info, err = c.engine.ImageInspect(ctx, full.String())
		}
	}
	if errors.Is(err, engine.ErrImageMissing) {
		return info, stromboli.Errorf(stromboli.ImageMissing, "image %q is not on this machine: pull or build it first (`stromboli setup --image` makes the agent image)", image).WithCause(ErrImageAbsent)
	}
	if err != nil {
		return info, engineError(err)
	}
	return info, nil
}

// factKey names an image by its content.
func factKey(info engine.Image) string {
	if info.Digest != "" {
		return info.Digest
	}
	return info.ID
}

// about finds out about an image that the engine has described. What is known
// already doesn't wait for looks into other images.
func (c *factCache) about(ctx context.Context, info engine.Image) (facts, error) {
	key := factKey(info)
	if f, ok := c.recall(key); ok {
		return f, nil
	}
	c.looking.Lock()
	defer c.looking.Unlock()
	if f, ok := c.recall(key); ok {
		return f, nil
	}
	f := facts{Format: factsFormat, Digest: key, OS: info.OS, Architecture: info.Architecture, Env: info.Env, Paths: make(map[string]pathFact)}
	if f.native() {
		err := c.probe(ctx, info.ID, func(id string) error { return c.find(ctx, id, &f) })
		if err != nil {
			return facts{}, err
		}
	}
	return f, c.remember(f)
}

// recall returns what is known already.
func (c *factCache) recall(key string) (facts, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.known[key]; ok {
		return f, true
	}
	f, err := c.load(key)
	if err != nil {
		return facts{}, false
	}
	c.known[key] = f
	return f, true
}

func (c *factCache) remember(f facts) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[f.Digest] = f
	return c.save(f)
}

func (c *factCache) find(ctx context.Context, id string, f *facts) error {
	look := func(p string) (bool, error) {
		_, err := c.engine.StatPath(ctx, id, p)
		if errors.Is(err, engine.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}
	var err error
	if f.Glibc, err = look(glibcLoaderPath()); err != nil {
		return engineError(err)
	}
	musl, err := look(muslLoaderPath())
	if err != nil {
		return engineError(err)
	}
	if musl {
		f.MuslLoader = muslLoaderPath()
	}
	for name, there := range map[string]*bool{"bash": &f.Bash, "claude": &f.Claude} {
		for _, dir := range []string{"/bin/", "/usr/bin/", "/usr/local/bin/"} {
			if *there, err = look(dir + name); err != nil {
				return engineError(err)
			}
			if *there {
				break
			}
		}
	}
	for name, into := range map[string]*string{"/etc/passwd": &f.Passwd, "/etc/group": &f.Group} {
		b, err := c.engine.ReadFile(ctx, id, name, maxPasswd)
		if err != nil && !errors.Is(err, engine.ErrNotFound) {
			return engineError(err)
		}
		*into = string(b)
	}
	return nil
}

// probe gives look a container of the image that is never started.
func (c *factCache) probe(ctx context.Context, image string, look func(id string) error) error {
	name := "stromboli-probe-" + stromboli.NewSandboxID()
	// As with sandboxes, the making is not cut short: see startContainer.
	created, err := c.engine.Create(context.WithoutCancel(ctx), engine.ContainerSpec{
		Name: name, Image: image, Labels: map[string]string{labelInstance: c.instance}, Command: []string{"/nothing"},
		CapDrop: []string{"all"}, NoNewPrivileges: true, ReadOnlyRoot: true,
	})
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		_ = c.engine.Remove(clean, name) // swept at the next start if this fails
	}()
	if err != nil {
		return engineError(err)
	}
	return look(created.ID)
}

// paths looks at paths of an image: each once, all that are new in one
// container.
func (c *factCache) paths(ctx context.Context, f facts, image string, paths ...string) (map[string]pathFact, error) {
	if asked, unknown := c.recallPaths(f, paths); len(unknown) == 0 {
		return asked, nil
	}
	c.looking.Lock()
	defer c.looking.Unlock()
	asked, unknown := c.recallPaths(f, paths) // somebody may have looked meanwhile
	if len(unknown) == 0 {
		return asked, nil
	}
	found := make(map[string]pathFact)
	err := c.probe(ctx, image, func(id string) (err error) {
		for _, p := range unknown {
			if found[p], err = c.lookAt(ctx, id, p); err != nil {
				return engineError(err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	maps.Copy(asked, found)
	known, _ := c.recall(f.Digest)
	if len(known.Paths)+len(found) <= maxPaths { // else what is known begins anew
		maps.Copy(found, known.Paths)
	}
	known.Paths = found
	return asked, c.remember(known)
}

// recallPaths returns what is known of paths already, and which are new.
func (c *factCache) recallPaths(f facts, paths []string) (asked map[string]pathFact, unknown []string) {
	known, _ := c.recall(f.Digest)
	asked = make(map[string]pathFact)
	for _, p := range paths {
		if fact, ok := known.Paths[p]; ok {
			asked[p] = fact
		} else {
			unknown = append(unknown, p)
		}
	}
	return asked, unknown
}

func (c *factCache) lookAt(ctx context.Context, id, p string) (pathFact, error) {
	link, err := engine.FindSymlink(ctx, c.engine, id, p)
	if err != nil {
		return pathFact{}, err
	}
	st, err := c.engine.StatPath(ctx, id, p)
	if errors.Is(err, engine.ErrNotFound) {
		return pathFact{Symlink: link}, nil
	}
	return pathFact{Symlink: link, Directory: err == nil && (st.Mode.IsDir() || st.LinkTarget != "")}, err
}

// directory reports whether an image has a directory at p.
func (c *factCache) directory(ctx context.Context, f facts, image, p string) (bool, error) {
	found, err := c.paths(ctx, f, image, p)
	return found[p].Directory, err
}

// symlink returns the first symlink of an image on the way to p, or "".
func (c *factCache) symlink(ctx context.Context, f facts, image, p string) (string, error) {
	found, err := c.paths(ctx, f, image, p)
	return found[p].Symlink, err
}

func (c *factCache) file(key string) string {
	return filepath.Join(c.dir, strings.NewReplacer("/", "_", ":", "-").Replace(key)+".json")
}

func (c *factCache) load(key string) (facts, error) {
	b, err := os.ReadFile(c.file(key))
	if err != nil {
		return facts{}, err
	}
	var f facts
	if err := json.Unmarshal(b, &f); err != nil {
		return facts{}, err
	}
	if f.Digest != key || f.Format != factsFormat {
		return facts{}, fmt.Errorf("facts of another image, or of another version, in %s", c.file(key))
	}
	return f, nil
}

// save writes the facts by way of a rename; a server that dies in between
// leaves the old file or none.
func (c *factCache) save(f facts) error {
	b, err := json.Marshal(f) //nolint:gosec // an image's list of users is no secret
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return storage(fmt.Errorf("keeping facts about an image: %w", err))
	}
	temp := c.file(f.Digest) + ".new"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return storage(fmt.Errorf("keeping facts about an image: %w", err))
	}
	return os.Rename(temp, c.file(f.Digest))
}
