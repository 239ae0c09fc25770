package setup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

const (
	cliBinary     = "claude"
	markerFile    = "package.json"
	progressEvery = 200 * time.Millisecond
)

// Dir is one build of the agent CLI on the host.
type Dir struct {
	// Path is the directory to mount; it holds the binary and a small marker.
	Path string
	// Binary is the CLI itself, Path/claude.
	Binary string
	// Version and Libc say which build it is.
	Version, Libc string
}

// marker is written last and tells a whole build from anything else.
type marker struct {
	Package   string `json:"package"`
	Version   string `json:"version"`
	Integrity string `json:"integrity,omitempty"`
	Size      int64  `json:"size"`
}

// CLI returns the agent CLI of the configured version, fetching it if the
// cache hasn't got it: about 175 MB to download, 380 MB on disk. It blocks
// until then or until ctx ends; the directory is durable on return. A cached
// one is checked by marker and size, which takes microseconds.
func CLI(ctx context.Context, cfg Config) (Dir, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		return Dir{}, err
	}
	want := marker{Package: c.cliPackage(), Version: c.Version}
	dir := c.cliDir()
	if c.cliWhole(dir, want) {
		return dir, nil
	}
	release, err := lockFile(ctx, filepath.Join(filepath.Dir(dir.Path), ".lock-"+filepath.Base(dir.Path)), func() {
		c.Progress(Progress{Step: "agent CLI " + c.Version, Message: "another setup is fetching it"})
	})
	if err != nil {
		return Dir{}, fmt.Errorf("fetch the agent CLI: %w", err)
	}
	defer release()
	if c.cliWhole(dir, want) {
		return dir, nil
	}
	if err := c.fetchCLI(ctx, dir, want); err != nil {
		return Dir{}, fmt.Errorf("fetch the agent CLI: %w", err)
	}
	return dir, nil
}

func (c Config) fetchCLI(ctx context.Context, dir Dir, want marker) error {
	tmp, err := tempDir(dir.Path)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	tgz, err := c.fetchPackage(ctx, tmp, want.Package, want.Version)
	if err != nil {
		return err
	}
	step := "agent CLI " + c.Version + " (" + c.Libc + ")"
	whole := filepath.Join(tmp, "whole")
	if err := os.Mkdir(whole, 0o755); err != nil { //nolint:gosec // the agent's uid reads it in the sandbox
		return fmt.Errorf("make a directory: %w", err)
	}
	want.Integrity = pinned(want.Package, want.Version)
	want.Size, err = unpackOne(tgz, "package/"+cliBinary, filepath.Join(whole, cliBinary), func(done, total int64) {
		c.Progress(Progress{Step: step, Message: "unpacking", Done: done, Total: total})
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("encode the marker: %w", err)
	}
	if _, err := writeFile(filepath.Join(whole, markerFile), 0o644, bytes.NewReader(append(text, '\n')), 1<<16); err != nil {
		return err
	}
	if err := os.Chmod(whole, 0o755); err != nil { //nolint:gosec // whatever the umask was
		return fmt.Errorf("open the directory to readers: %w", err)
	}
	if err := syncDir(whole); err != nil {
		return err
	}
	if err := replace(whole, dir.Path); err != nil {
		return err
	}
	c.Progress(Progress{Step: step, Message: "ready", Done: want.Size, Total: want.Size})
	return nil
}

func (c Config) cliPackage() string {
	cpu := "x64"
	if c.Arch == "arm64" {
		cpu = "arm64"
	}
	name := "@anthropic-ai/claude-code-linux-" + cpu
	if c.Libc == Musl {
		name += "-musl"
	}
	return name
}

func (c Config) cliDir() Dir {
	name := c.Version + "-" + c.Libc
	if c.Arch != runtime.GOARCH {
		name += "-" + c.Arch
	}
	path := filepath.Join(c.CacheDir, "cli", name)
	return Dir{Path: path, Binary: filepath.Join(path, cliBinary), Version: c.Version, Libc: c.Libc}
}

// cliWhole reports whether dir holds what want names. It trusts the marker,
// which was synced after the binary, and the binary's size.
func (c Config) cliWhole(dir Dir, want marker) bool {
	got, ok := readMarker(filepath.Join(dir.Path, markerFile))
	if !ok || got.Package != want.Package || got.Version != want.Version {
		return false
	}
	if pin := pinned(want.Package, want.Version); pin != "" && got.Integrity != pin {
		return false
	}
	st, err := os.Lstat(dir.Binary)
	return err == nil && st.Mode().IsRegular() && st.Size() == got.Size && st.Mode()&0o111 != 0
}

func readMarker(path string) (marker, bool) {
	text, err := os.ReadFile(path)
	if err != nil || len(text) > 1<<16 {
		return marker{}, false
	}
	var m marker
	if err := json.Unmarshal(text, &m); err != nil {
		return marker{}, false
	}
	return m, true
}
