// Package setup brings what a host needs before its first run and what isn't
// part of the program: the agent CLI, a musl loader for images without glibc,
// and the default agent image. It owns the cache directory.
//
// It promises that what it returns is whole: everything is fetched to a
// temporary place, verified against the published SHA-512 (and against the one
// in the source for versions known here), synced and renamed. Two processes
// that set up at once wait for each other. A second call finds the result
// within milliseconds and needs no network, nor write access to the cache.
//
// It installs nothing on the host, changes no configuration, and refuses
// packages without a published integrity.
package setup

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Progress is one step forward in something slow.
type Progress struct {
	// Step names the work, such as "agent CLI 2.1.330"; it stays the same
	// until that work is done.
	Step string
	// Message says what is happening now.
	Message string
	// Done and Total count bytes; zero where bytes aren't what is counted or
	// the total isn't known.
	Done, Total int64
}

// Config says what to fetch and where to keep it. Only CacheDir is needed.
type Config struct {
	// CacheDir is the cache's root, made if missing. See DefaultCacheDir.
	CacheDir string
	// Version of the agent CLI; default CLIVersion.
	Version string
	// Arch is a GOARCH, amd64 or arm64; default this program's.
	Arch string
	// Libc is the CLI's build, Glibc (the default) or Musl.
	Libc string
	// Registry is the npm registry to ask where npm is missing and npm's own
	// configuration names none. Empty: such a host gets an error that names
	// the ways out.
	Registry string
	// Env is the environment, as of os.Environ, which is the default. PATH
	// finds the tools; npm_config_*, HOME and proxy variables are obeyed.
	Env []string
	// Progress is told about slow steps, from one goroutine at a time. May be
	// nil; must not block.
	Progress func(Progress)
}

// Builds of the agent CLI.
const (
	Glibc = "glibc"
	Musl  = "musl"
)

// DefaultCacheDir returns STROMBOLI_CACHE_DIR, else stromboli below
// XDG_CACHE_HOME, else ~/.cache/stromboli.
func DefaultCacheDir(env []string) (string, error) {
	if dir := lookup(env, "STROMBOLI_CACHE_DIR"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := lookup(env, "XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "stromboli"), nil
	}
	if home := lookup(env, "HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".cache", "stromboli"), nil
	}
	return "", errors.New("no cache directory: set STROMBOLI_CACHE_DIR or HOME")
}

func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.CacheDir) {
		return c, errors.New("setup: the cache directory must be an absolute path")
	}
	if c.Version == "" {
		c.Version = CLIVersion
	}
	if !plainVersion(c.Version) {
		return c, errors.New("setup: not a version: " + c.Version)
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	if c.Arch != "amd64" && c.Arch != "arm64" {
		return c, errors.New("setup: the agent CLI has no build for " + c.Arch)
	}
	if c.Libc == "" {
		c.Libc = Glibc
	}
	if c.Libc != Glibc && c.Libc != Musl {
		return c, errors.New("setup: no such C library: " + c.Libc)
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Progress == nil {
		c.Progress = func(Progress) {}
	}
	return c, nil
}

// plainVersion keeps versions usable as a file's name.
func plainVersion(v string) bool {
	if v == "" || len(v) > 64 || strings.Contains(v, "..") {
		return false
	}
	for i, r := range v {
		digit := r >= '0' && r <= '9'
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if i == 0 && !digit || !digit && !letter && r != '.' && r != '-' && r != '+' {
			return false
		}
	}
	return true
}

// lookup returns the last value of a variable, as the kernel's readers do.
func lookup(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == name {
			return v
		}
	}
	return ""
}

// lookPath finds a program on env's PATH. Relative entries are left out: a
// program of the current directory is never meant here.
func lookPath(env []string, name string) (string, bool) {
	path := lookup(env, "PATH")
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, name)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return file, true
		}
	}
	return "", false
}
