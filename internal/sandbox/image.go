package sandbox

import (
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
)

// facts are what must be known of an image to run an agent in it. They are
// found once per digest, by a container that is never started, and kept on
// disk.
type facts struct {
	Digest     string
	Glibc      bool   // the image has glibc's loader
	MuslLoader string // the path of musl's loader in the image, or empty
	Bash       bool
	Passwd     string
	Group      string
	Env        []string

	// Paths holds what was asked of single paths so far.
	Paths map[string]pathFact
}

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

// usable refuses an image in which the agent could do nothing: its Bash tool
// needs bash.
func (f facts) usable(image string) error {
	if !f.Bash {
		return stromboli.Errorf(stromboli.ImageMissing, "image %s has no bash, which the agent needs to run commands: add it to the image", image)
	}
	return nil
}

const maxPasswd = 1 << 20

// factCache finds facts and keeps them.
type factCache struct {
	engine   engine.Engine
	dir      string
	instance string

	mu    sync.Mutex
	known map[string]facts // by digest
}

func newFactCache(e engine.Engine, dir, instance string) *factCache {
	return &factCache{engine: e, dir: dir, instance: instance, known: make(map[string]facts)}
}

// of returns the facts about an image on this machine.
func (c *factCache) of(ctx context.Context, image string) (facts, error) {
	info, err := c.engine.ImageInspect(ctx, image)
	if errors.Is(err, engine.ErrImageMissing) {
		return facts{}, stromboli.Errorf(stromboli.ImageMissing, "image %q is not on this machine: pull or build it first (`stromboli setup --image` makes the agent image)", image)
	}
	if err != nil {
		return facts{}, engineError(err)
	}
	key := info.Digest
	if key == "" {
		key = info.ID
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.known[key]; ok {
		return f, nil
	}
	if f, err := c.load(key); err == nil {
		c.known[key] = f
		return f, nil
	}
	f := facts{Digest: key, Env: info.Env, Paths: make(map[string]pathFact)}
	err = c.probe(ctx, image, func(id string) error {
		return c.find(ctx, id, &f)
	})
	if err != nil {
		return facts{}, err
	}
	c.known[key] = f
	return f, c.save(f)
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
	for _, bash := range []string{"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"} {
		if f.Bash, err = look(bash); err != nil {
			return engineError(err)
		}
		if f.Bash {
			break
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
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.known[f.Digest]
	asked, found := make(map[string]pathFact), make(map[string]pathFact)
	var unknown []string
	for _, p := range paths {
		if fact, ok := known.Paths[p]; ok {
			asked[p] = fact
		} else {
			unknown = append(unknown, p)
		}
	}
	if len(unknown) == 0 {
		return asked, nil
	}
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
	if len(known.Paths)+len(found) <= maxPaths { // else what is known begins anew
		maps.Copy(found, known.Paths)
	}
	known.Paths = found
	c.known[f.Digest] = known
	return asked, c.save(known)
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
	if f.Digest != key {
		return facts{}, fmt.Errorf("facts of another image in %s", c.file(key))
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
