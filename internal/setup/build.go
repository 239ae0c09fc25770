package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pullTimeout bounds the wait for a registry that drops packets: the way
// without one is a minute's work.
const pullTimeout = 3 * time.Minute

// base is what the Containerfile goes on top of.
type base struct {
	ref string
	how string
	// hostSources: the base is the host's own distribution, so the host's
	// package sources are right for it.
	hostSources bool
	// drop: a name of ours in the store, to be taken away after the build.
	drop bool
}

// build makes the image in the store, by the first way that works.
func (c ImageConfig) build(ctx context.Context) error {
	// Not below the cache: its path may be long, and the context holds the
	// host's credentials for its package sources, so it is private and goes.
	dir, err := os.MkdirTemp("", "stromboli-image-")
	if err != nil {
		return fmt.Errorf("make a build directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := c.packages(ctx, dir); err != nil {
		return err
	}
	var failed error
	if c.Base != Bootstrap {
		b, err := c.pull(ctx)
		if err == nil {
			err = c.buildOn(ctx, dir, b)
		}
		if err == nil || ctx.Err() != nil || c.Base != "" {
			return err
		}
		failed = err
		c.Progress(Progress{Step: "agent image", Message: "no container registry could be used (" + firstLine(err) + "): making the base from the distribution's packages"})
	}
	b, err := c.bootstrap(ctx, dir)
	if err != nil {
		return errors.Join(failed, err)
	}
	if err := c.buildOn(ctx, dir, b); err != nil {
		return errors.Join(failed, err)
	}
	return nil
}

// packages puts Node.js and npm, verified, into the build context.
func (c ImageConfig) packages(ctx context.Context, dir string) error {
	target := filepath.Join(dir, "context", "packages")
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("make the build context: %w", err)
	}
	for _, p := range []struct{ file, pkg, version string }{
		{"node.tgz", nodePackage(c.Arch), nodeVersion},
		{"npm.tgz", "npm", npmVersion},
	} {
		work := filepath.Join(dir, "fetch-"+p.file)
		if err := os.Mkdir(work, 0o700); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		tgz, err := c.fetchPackage(ctx, work, p.pkg, p.version)
		if err != nil {
			return err
		}
		if err := os.Rename(tgz, filepath.Join(target, p.file)); err != nil {
			return fmt.Errorf("put %s into the build context: %w", p.pkg, err)
		}
	}
	return nil
}

func (c ImageConfig) pull(ctx context.Context) (base, error) {
	ref := c.Base
	if ref == "" {
		ref = BaseImage
	}
	check, cancel := context.WithTimeout(ctx, time.Minute)
	_, err := c.podman("image", "inspect", "--format", "{{.Id}}", ref).output(check)
	cancel()
	if err == nil {
		return base{ref: ref, how: "registry " + ref}, nil
	}
	c.Progress(Progress{Step: "agent image", Message: "pulling " + ref})
	ctx, cancel = context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	if _, err := c.podman("pull", "-q", ref).output(ctx); err != nil {
		return base{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return base{ref: ref, how: "registry " + ref}, nil
}

// buildOn runs the Containerfile. Layers aren't kept: the content's hash is
// the cache, and one layer on top of the base is smaller.
func (c ImageConfig) buildOn(ctx context.Context, dir string, b base) error {
	buildDir := filepath.Join(dir, "context")
	file := filepath.Join(buildDir, "Containerfile")
	if err := os.RemoveAll(file); err != nil {
		return fmt.Errorf("clear the build context: %w", err)
	}
	if _, err := writeFile(file, 0o600, strings.NewReader(c.Containerfile), 1<<20); err != nil {
		return err
	}
	if err := c.hostFiles(ctx, filepath.Join(buildDir, "host"), b.hostSources); err != nil {
		return err
	}
	call := c.podman("build", "--layers=false", "--network", "host", "--pull=never",
		"--build-arg", "BASE="+b.ref,
		"--label", labelContent+"="+c.key(), "--label", labelBase+"="+b.how,
		"--label", "org.opencontainers.image.title=Stromboli agent",
		"-t", c.name(), "-f", file, buildDir)
	var last time.Time
	call.line = func(line string) {
		// The tools' own lines say little, but that it goes on.
		if now := time.Now(); strings.HasPrefix(line, "STEP ") || now.Sub(last) > 2*time.Second {
			last = now
		} else {
			return
		}
		if len(line) > 100 {
			line = line[:100] + "…"
		}
		c.Progress(Progress{Step: "agent image", Message: "building: " + line})
	}
	_, err := call.output(ctx)
	if b.drop {
		// The image keeps the base's layers; only the name goes.
		if _, derr := c.podman("rmi", b.ref).output(ctx); derr != nil && err == nil {
			c.Progress(Progress{Step: "agent image", Message: "the base's name stays: " + firstLine(derr)})
		}
	}
	if err != nil {
		return fmt.Errorf("build on %s: %w", b.how, err)
	}
	return nil
}

// hostFiles writes what package tools need to get out of this machine. The
// Containerfile mounts the directory for single steps.
func (c ImageConfig) hostFiles(ctx context.Context, dir string, sources bool) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clear the build context: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // its parent is private
		return fmt.Errorf("make the build context: %w", err)
	}
	const inside = "/build/host/"
	apt := readApt(ctx, c.Env)
	var conf strings.Builder
	conf.WriteString("APT::Sandbox::User \"root\";\n")
	if ca := c.certificates(); len(ca) > 0 {
		if _, err := writeFile(filepath.Join(dir, "ca.crt"), 0o644, bytes.NewReader(ca), 8<<20); err != nil {
			return err
		}
		fmt.Fprintf(&conf, "Acquire::https::CAInfo %q;\n", inside+"ca.crt")
	}
	for _, o := range apt.options {
		fmt.Fprintf(&conf, "%s;\n", o)
	}
	if sources {
		if len(apt.auth) > 0 {
			if _, err := writeFile(filepath.Join(dir, "auth.conf"), 0o600, bytes.NewReader(apt.auth), 1<<20); err != nil {
				return err
			}
			fmt.Fprintf(&conf, "Dir::Etc::netrc %q;\n", inside+"auth.conf")
		}
		list := strings.Join(apt.sources, "\n") + "\n"
		if _, err := writeFile(filepath.Join(dir, "sources.list"), 0o644, strings.NewReader(list), 1<<20); err != nil {
			return err
		}
		fmt.Fprintf(&conf, "Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts \"-\";\n", inside+"sources.list")
	}
	_, err := writeFile(filepath.Join(dir, "apt.conf"), 0o644, strings.NewReader(conf.String()), 1<<20)
	return err
}

// certificates returns the host's bundle, with a company's own authorities.
func (c ImageConfig) certificates() []byte {
	for _, path := range []string{
		lookup(c.Env, "SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
	} {
		if path == "" {
			continue
		}
		if pem, err := os.ReadFile(path); err == nil && len(pem) < 8<<20 {
			return pem
		}
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	if len(line) > 200 {
		line = line[:200] + "…"
	}
	return line
}
