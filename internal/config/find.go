package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/caarlos0/env/v11"
)

// Find is the file that a server reads which is told of none: stromboli.yaml
// in the working directory, in ~/.stromboli, or in /etc/stromboli, the first
// that is there; empty: none. In the two directories it may be named config.yaml
// too, and everywhere .yml. Who may write it decides what this server lets agents
// do: somebody else's file is an error, and so is one in a working directory that
// agents may write to by the configuration that holds without it.
func Find(environ []string) (string, error) {
	dirs := fileDirs(env.ToMap(environ)["HOME"])
	path, err := find([][]string{{"stromboli.yaml", "stromboli.yml"}}, dirs)
	if err != nil || path == "" || filepath.IsAbs(path) {
		return path, err
	}
	other, err := find(nil, dirs)
	if err != nil {
		return "", err
	}
	without, err := Read(Source{Environ: environ, File: other})
	if err != nil { // no server could have run by it
		return path, nil //nolint:nilerr // it is told of where it counts
	}
	if writable, err := without.agentsWrite("."); err != nil || writable {
		return "", errors.Join(err, fmt.Errorf("%s: this configuration file lies where agents may write (STROMBOLI_AGENT_ALLOWED_VOLUMES), so one of them may have made it: move it, or name it by --config", path))
	}
	return path, nil
}

// fileDirs are the directories in which a configuration file is looked for,
// beside the working directory.
func fileDirs(home string) []string {
	dirs := []string{"/etc/stromboli"}
	if filepath.IsAbs(home) {
		dirs = append([]string{filepath.Join(home, ".stromboli")}, dirs...)
	}
	return dirs
}

// FileDirs are directories whose files configure the next server: no agent may
// have them.
func (c *Config) FileDirs() []string { return fileDirs(c.home) }

// agentsWrite reports whether a volume may hold a directory, or lie above it.
func (c *Config) agentsWrite(dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return false, err
	}
	for _, root := range c.Agent.AllowedVolumes {
		if real, err := filepath.EvalSymlinks(root); err == nil {
			root = real
		}
		if rel, err := filepath.Rel(root, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true, nil
		}
	}
	return c.Agent.AllowAllVolumes, nil
}

func find(places [][]string, dirs []string) (string, error) {
	for _, dir := range dirs {
		var names []string
		for _, name := range []string{"stromboli.yaml", "stromboli.yml", "config.yaml", "config.yml"} {
			names = append(names, filepath.Join(dir, name))
		}
		places = append(places, names)
	}
	for _, names := range places {
		var found []string
		for _, path := range names {
			_, err := os.Lstat(path)
			switch {
			case err == nil:
				found = append(found, path)
			case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission):
				return "", fmt.Errorf("looking for a configuration file: %w", err)
			}
		}
		if len(found) > 1 {
			return "", fmt.Errorf("%s: several configuration files: keep one, or name one by --config", strings.Join(found, ", "))
		}
		if len(found) == 1 {
			return found[0], mine(found[0])
		}
	}
	return "", nil
}
