package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// withWorkdir returns the request's volumes and, where the working directory
// that it names is a directory of the host's that may be mounted, one for that
// at the same path. What can't be mounted is as if it weren't there.
func (m *Manager) withWorkdir(p policy.Plan) []policy.Mount {
	if p.HostWorkdir == nil || !m.isVolume(p.HostWorkdir.Source) {
		return p.Mounts
	}
	dir := p.HostWorkdir.Target
	volumes := make([]policy.Mount, 0, len(p.Mounts)+1)
	for _, v := range p.Mounts {
		if v.Within == "" && below(v.Target, dir) {
			v.Within = dir
		}
		volumes = append(volumes, v)
	}
	return append(volumes, *p.HostWorkdir)
}

// isVolume reports whether a path of the host is a directory that a volume may
// be made of.
func (m *Manager) isVolume(path string) bool {
	source, err := filepath.EvalSymlinks(path)
	if err != nil || !m.allowed(source) || m.cfg.Container && !m.fromHost(source) {
		return false
	}
	info, err := os.Lstat(source)
	return err == nil && info.IsDir()
}

// labelAdvice tells of a label that is not given. On a host without SELinux the
// options z and Z mean nothing, as for the engine itself.
func (m *Manager) labelAdvice(v policy.Mount) []stromboli.Warning {
	if v.Label == "" || !m.cfg.Info.SELinux {
		return nil
	}
	return []stromboli.Warning{{
		Code: "volume_label",
		Message: v.Field + ": the option " + v.Label + " gives the files no label: SELinux doesn't separate sandboxes (label=disable), " +
			"so that they reach a volume without one",
	}}
}

// checkWorkdir refuses a working directory inside a volume that can't become
// one, and notes whether it is to be looked for in the sandbox: where symlinks
// lead out of the volume, and what earlier runs made in the session's home,
// only that can tell.
func (m *Manager) checkWorkdir(p *Plan) error {
	v := p.covers(p.Workdir)
	if v == nil {
		for _, dir := range []string{HomePath, "/tmp"} {
			p.seekWorkdir = p.seekWorkdir || p.Workdir != dir && below(p.Workdir, dir)
		}
		return nil
	}
	p.seekWorkdir = true
	root, err := os.OpenRoot(v.source)
	if err != nil { // not a directory, or closed to this server's user
		info, serr := os.Stat(v.source)
		if serr == nil && !info.IsDir() {
			return stromboli.FieldError("workdir", "%s: the volume at %s is not a directory", p.Workdir, v.target)
		}
		return nil
	}
	defer func() { _ = root.Close() }()
	rest := strings.TrimPrefix(strings.TrimPrefix(p.Workdir, v.target), "/")
	if rest == "" {
		p.seekWorkdir = false
		return nil
	}
	info, err := root.Stat(rest)
	switch {
	case err == nil && info.IsDir():
		p.seekWorkdir = false
		return nil
	case err == nil:
		return stromboli.FieldError("workdir", "%s is not a directory in the volume at %s", p.Workdir, v.target)
	case !errors.Is(err, fs.ErrNotExist):
		return nil
	case v.readOnly:
		return stromboli.FieldError("workdir", "%s does not exist in the volume at %s, which is mounted read-only", p.Workdir, v.target)
	case m.cfg.KeepWorkdir:
		return stromboli.FieldError("workdir", "%s does not exist in the volume at %s, and this server makes no working directories "+
			"(STROMBOLI_AGENT_WORKDIR_AUTO_CREATE=false)", p.Workdir, v.target)
	}
	return nil
}

// makeWorkdir makes sure, as the agent, that the working directory is there.
func (m *Manager) makeWorkdir(ctx context.Context, box *Sandbox, checked Plan) error {
	if !checked.seekWorkdir {
		return nil
	}
	if m.cfg.KeepWorkdir {
		stats, err := box.Peer.Mounts(ctx, []string{box.Workdir + "/."}, box.UID, box.GID)
		if err != nil || stats[0].Err == "" {
			return err
		}
		return stromboli.Errorf(stromboli.NotEnforced, "workdir: %s is no directory of the sandbox (%s), and this server makes none "+
			"(STROMBOLI_AGENT_WORKDIR_AUTO_CREATE=false)", box.Workdir, stats[0].Err)
	}
	err := box.Peer.MakeDir(ctx, box.Workdir, box.UID, box.GID)
	if remote, ok := errors.AsType[*shim.RemoteError](err); ok {
		return stromboli.Errorf(stromboli.NotEnforced, "workdir: %s is no directory of the sandbox and can't be made there: %s", box.Workdir, remote.Message)
	}
	return err
}
