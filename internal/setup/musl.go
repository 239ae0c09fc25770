package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// loaderLimit is far above musl's real size, 0.7 MB.
const loaderLimit = 32 << 20

// LoaderPath returns where an image must have musl's loader: the path that the
// musl build of the CLI names.
func LoaderPath(arch string) string { return "/lib/" + loaderName(arch) }

func loaderName(arch string) string {
	if arch == "arm64" {
		return "ld-musl-aarch64.so.1"
	}
	return "ld-musl-x86_64.so.1"
}

// MuslLoader returns musl's loader, which is its C library too, as one file to
// mount at LoaderPath in images that have neither C library. It is the host's
// own where musl is installed, else it comes from the distribution's musl
// package, downloaded and unpacked, not installed; apt verifies its signature.
func MuslLoader(ctx context.Context, cfg Config) (string, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	if c.Arch != runtime.GOARCH {
		return "", errors.New("fetch musl's loader: only this machine's own architecture is supported")
	}
	target := filepath.Join(c.CacheDir, "musl", c.Arch, loaderName(c.Arch))
	if loaderWhole(target) {
		return target, nil
	}
	release, err := lockFile(ctx, filepath.Join(filepath.Dir(target), ".lock"), func() {
		c.Progress(Progress{Step: "musl loader", Message: "another setup is fetching it"})
	})
	if err != nil {
		return "", fmt.Errorf("fetch musl's loader: %w", err)
	}
	defer release()
	if loaderWhole(target) {
		return target, nil
	}
	if err := c.fetchLoader(ctx, target); err != nil {
		return "", fmt.Errorf("fetch musl's loader: %w", err)
	}
	return target, nil
}

func (c Config) fetchLoader(ctx context.Context, target string) error {
	tmp, err := tempDir(target)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	source := LoaderPath(c.Arch)
	if !loaderWhole(source) {
		if source, err = c.unpackMusl(ctx, tmp); err != nil {
			return err
		}
	}
	f, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("open the loader: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.New("the loader is not a regular file")
	}
	whole := filepath.Join(tmp, "whole")
	if _, err := writeFile(whole, 0o755, f, loaderLimit); err != nil {
		return err
	}
	return replace(whole, target)
}

func (c Config) unpackMusl(ctx context.Context, tmp string) (string, error) {
	apt, okApt := lookPath(c.Env, "apt-get")
	dpkg, okDpkg := lookPath(c.Env, "dpkg-deb")
	if !okApt || !okDpkg {
		return "", fmt.Errorf("neither %s nor apt-get is there: install musl", LoaderPath(c.Arch))
	}
	c.Progress(Progress{Step: "musl loader", Message: "downloading the distribution's musl package"})
	if _, err := (command{argv: []string{apt, "-q", "-o", "APT::Sandbox::User=root", "download", "musl"}, env: c.Env, dir: tmp}).output(ctx); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "musl_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get left %d packages", len(debs))
	}
	root := filepath.Join(tmp, "root")
	if _, err := (command{argv: []string{dpkg, "-x", debs[0], root}, env: c.Env, dir: tmp}).output(ctx); err != nil {
		return "", err
	}
	for _, dir := range []string{"lib", "usr/lib"} {
		file, err := filepath.EvalSymlinks(filepath.Join(root, dir, loaderName(c.Arch)))
		if err == nil && strings.HasPrefix(file, root+string(filepath.Separator)) && loaderWhole(file) {
			return file, nil
		}
		// The link may be absolute: the library lies beside it by triplet.
		triplet := strings.TrimSuffix(strings.TrimPrefix(loaderName(c.Arch), "ld-musl-"), ".so.1") + "-linux-musl"
		if file := filepath.Join(root, dir, triplet, "libc.so"); loaderWhole(file) {
			return file, nil
		}
	}
	return "", errors.New("the musl package has no loader")
}

// loaderWhole reports whether path is an ELF file of plausible size.
func loaderWhole(path string) bool {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() < 100_000 || st.Size() > loaderLimit {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = f.Read(magic[:])
	return err == nil && string(magic[:]) == "\x7fELF"
}
