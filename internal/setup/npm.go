package setup

import (
	"context"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// tarballLimit bounds what a registry may send for one package.
const tarballLimit = 1 << 30

// errIntegrity marks a package that isn't the published one; trying another
// way would only hide that.
var errIntegrity = errors.New("wrong integrity")

// fetchPackage brings one npm package into dir, verified, and returns its
// file.
func (c Config) fetchPackage(ctx context.Context, dir, pkg, version string) (string, error) {
	if npm, ok := lookPath(c.Env, "npm"); ok {
		return c.npmPack(ctx, npm, dir, pkg, version)
	}
	return c.download(ctx, dir, pkg, version)
}

func (c Config) npmPack(ctx context.Context, npm, dir, pkg, version string) (string, error) {
	spec := pkg + "@" + version
	step := "fetch " + spec
	c.Progress(Progress{Step: step, Message: "through npm"})
	want := pinned(pkg, version)
	if want == "" {
		out, err := command{argv: []string{npm, "view", spec, "dist.integrity"}, env: c.Env, dir: dir}.output(ctx)
		if err != nil {
			return "", fmt.Errorf("ask for the published integrity of %s: %w", spec, err)
		}
		want = strings.TrimSpace(out)
	}
	packDir := filepath.Join(dir, "pack")
	if err := os.Mkdir(packDir, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for npm: %w", err)
	}
	done := make(chan struct{})
	ticking := make(chan struct{})
	go func() { // npm pack is silent until its end
		defer close(ticking)
		start, tick := time.Now(), time.NewTicker(3*time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				c.Progress(Progress{Step: step, Message: fmt.Sprintf("npm is fetching it, %d s", int(now.Sub(start).Seconds()))})
			}
		}
	}()
	_, err := command{
		argv: []string{npm, "pack", spec, "--pack-destination", packDir, "--ignore-scripts", "--loglevel=error"},
		env:  c.Env, dir: dir,
	}.output(ctx)
	close(done)
	<-ticking
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", spec, err)
	}
	found, err := filepath.Glob(filepath.Join(packDir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("fetch %s: npm pack left %d files", spec, len(found))
	}
	f, err := os.Open(found[0])
	if err != nil {
		return "", fmt.Errorf("open the package: %w", err)
	}
	defer f.Close()
	sum := sha512.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return "", fmt.Errorf("read the package: %w", err)
	}
	if err := checkIntegrity(spec, want, sum.Sum(nil)); err != nil {
		return "", err
	}
	c.Progress(Progress{Step: step, Message: "verified", Done: size, Total: size})
	return found[0], nil
}

func (c Config) download(ctx context.Context, dir, pkg, version string) (string, error) {
	spec := pkg + "@" + version
	rc, err := readNpmrc(c.Env)
	if err != nil {
		return "", err
	}
	registry := rc.registry(pkg)
	if registry == "" {
		registry = c.Registry
	}
	if registry == "" {
		return "", fmt.Errorf("fetch %s: npm is not installed and its configuration names no registry: "+
			"install npm, or set npm_config_registry", spec)
	}
	client, err := newRegistryClient(rc)
	if err != nil {
		return "", err
	}
	defer client.close()
	meta, err := client.version(ctx, registry, pkg, version)
	if err != nil {
		return "", err
	}
	want := pinned(pkg, version)
	if want == "" {
		want = meta.Integrity
	}
	body, size, err := client.get(ctx, meta.Tarball)
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", spec, err)
	}
	defer body.Close()
	sum := sha512.New()
	counted := &counter{r: io.TeeReader(body, sum), every: 200 * time.Millisecond, tell: func(n int64) {
		c.Progress(Progress{Step: "fetch " + spec, Message: "downloading", Done: n, Total: max(size, 0)})
	}}
	file := filepath.Join(dir, "package.tgz")
	if _, err := writeFile(file, 0o600, counted, tarballLimit); err != nil {
		return "", fmt.Errorf("fetch %s: %w", spec, err)
	}
	if err := checkIntegrity(spec, want, sum.Sum(nil)); err != nil {
		return "", err
	}
	c.Progress(Progress{Step: "fetch " + spec, Message: "verified", Done: counted.n, Total: counted.n})
	return file, nil
}

// checkIntegrity compares a SHA-512 with a Subresource Integrity string. One
// without a SHA-512 is refused: older hashes prove nothing.
func checkIntegrity(spec, published string, sum []byte) error {
	for word := range strings.FieldsSeq(published) {
		text, ok := strings.CutPrefix(word, "sha512-")
		if !ok {
			continue
		}
		text, _, _ = strings.Cut(text, "?")
		want, err := base64.StdEncoding.DecodeString(text)
		if err == nil && subtle.ConstantTimeCompare(want, sum) == 1 {
			return nil
		}
		return fmt.Errorf("%s: %w: published %s, fetched sha512-%s", spec, errIntegrity, word, base64.StdEncoding.EncodeToString(sum))
	}
	return fmt.Errorf("%s: %w: no SHA-512 is published", spec, errIntegrity)
}

// counter reports how far a reader has come, not more often than every.
type counter struct {
	r     io.Reader
	n     int64
	every time.Duration
	last  time.Time
	tell  func(int64)
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if now := time.Now(); now.Sub(c.last) >= c.every {
		c.last = now
		c.tell(c.n)
	}
	return n, err
}
