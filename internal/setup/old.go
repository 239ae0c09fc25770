package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Kept is a build of the agent CLI in the cache, or an agent image, and when a
// server last used it.
type Kept struct {
	Name  string // the CLI's directory, or the image
	Used  time.Time
	Bytes int64
}

// Use notes that a server uses this release's CLI and agent image now.
func Use(cfg Config) error {
	c, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	var errs []error
	for _, libc := range []string{Glibc, Musl} {
		c.Libc = libc
		if _, err := os.Stat(c.cliDir().Path); err == nil {
			errs = append(errs, touch(usedFile(c.cliDir().Path)))
		}
	}
	image, err := AgentImageName(ImageConfig{Config: cfg})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, touch(usedFile(imageFile(c.CacheDir, image))))...)
}

// usedFile is a file beside a thing whose time says when the thing was last used.
func usedFile(path string) string {
	dir, base := filepath.Split(path)
	return filepath.Join(dir, ".used-"+base)
}

func imageFile(cache, image string) string {
	return filepath.Join(cache, "images", strings.TrimPrefix(image, agentRepository+":"))
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // public files
		return fmt.Errorf("make the cache directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("note a use: %w", err)
	}
	now := time.Now()
	return errors.Join(f.Close(), os.Chtimes(path, now, now))
}

// used tells when a thing was last used. One that nobody has noted yet is taken to
// be used now: another server may just have begun with it.
func used(path string) (time.Time, error) {
	fi, err := os.Stat(usedFile(path))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Now(), touch(usedFile(path))
	}
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// trashPrefix begins the name of a build that is being removed.
const trashPrefix = ".trash-"

// OldCLIs returns the builds of the agent CLI in the cache that are not this
// release's.
func OldCLIs(cfg Config) ([]Kept, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	for _, libc := range []string{Glibc, Musl} {
		c.Libc = libc
		own[filepath.Base(c.cliDir().Path)] = true
	}
	dir := filepath.Join(c.CacheDir, "cli")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the agent CLIs: %w", err)
	}
	var old []Kept
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		m, ok := readMarker(filepath.Join(path, markerFile))
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") || own[e.Name()] || !ok {
			continue
		}
		at, err := used(path)
		if err != nil {
			return nil, fmt.Errorf("look at an agent CLI: %w", err)
		}
		old = append(old, Kept{Name: path, Used: at, Bytes: m.Size})
	}
	return old, nil
}

// RemoveCLI deletes a build that OldCLIs has told of, unless somebody has used it
// since; gone says that it did. No container may have it mounted.
func RemoveCLI(ctx context.Context, old Kept) (gone bool, err error) {
	dir, base := filepath.Split(old.Name)
	release, err := lockFile(ctx, filepath.Join(dir, ".lock-"+base), func() {})
	if err != nil {
		return false, fmt.Errorf("remove an agent CLI: %w", err)
	}
	defer release()
	if at, err := used(old.Name); err != nil || at.After(old.Used) {
		return false, err
	}
	// A half-removed one must not look whole, and is to be found again.
	trash := filepath.Join(dir, trashPrefix+base)
	if err := errors.Join(os.RemoveAll(trash), os.Rename(old.Name, trash)); err != nil {
		return false, fmt.Errorf("remove an agent CLI: %w", err)
	}
	if err := errors.Join(os.RemoveAll(trash), os.Remove(usedFile(old.Name))); err != nil {
		return false, fmt.Errorf("remove an agent CLI: %w", err)
	}
	return true, nil
}

// ClearCLIs removes what is left of builds whose removal was cut short.
func ClearCLIs(cfg Config) error {
	c, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(c.CacheDir, "cli", trashPrefix+"*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// OldImage tells of an image by one of its names, if it is an agent image of
// another release.
func OldImage(cfg Config, name string) (Kept, bool, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return Kept{}, false, err
	}
	own, err := AgentImageName(ImageConfig{Config: cfg})
	if err != nil || name == own || !strings.HasPrefix(name, agentRepository+":") {
		return Kept{}, false, err
	}
	at, err := used(imageFile(c.CacheDir, name))
	return Kept{Name: name, Used: at}, err == nil, err
}

// ForgetImage forgets when an image was used, once it is gone.
func ForgetImage(cfg Config, name string) error {
	c, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := os.Remove(usedFile(imageFile(c.CacheDir, name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget an image's use: %w", err)
	}
	return nil
}
