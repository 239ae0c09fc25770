package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// Plan is a policy's plan that was checked against this host: its image, its
// volumes, and who the agent will be.
type Plan struct {
	Image    string
	Workdir  string
	UID, GID int // the agent's, in the sandbox
	Warnings []stromboli.Warning
	// ImageNames are all names of the image on this machine, in full.
	ImageNames []string

	imageID     string // what is run: the name may come to mean another image
	facts       facts
	mounts      []mount
	workspaceAt string // where the session's own workspace is mounted; empty: nowhere
	seekWorkdir bool   // the working directory may be missing in the sandbox
	ownSession  bool   // the agent's uid is decided by no volume
}

// mount is a volume whose source was resolved, with the identity that it had.
type mount struct {
	source, target string
	field          string // the request's, for messages
	readOnly       bool
	noExec         bool
	dev, ino       uint64
	uid, gid       int
	aclUID         map[int]bool // uids that an ACL lets write
	own            bool         // the session's directory, no volume
}

// Check refuses what no sandbox could be made from: an image that is missing
// or can't run the CLI, a volume outside the allowed directories, limits that
// can't be enforced, an agent that would have to be root. Where nothing but the
// image is missing the error is ErrImageAbsent, and the plan all that can be
// said without it.
func (m *Manager) Check(ctx context.Context, p policy.Plan) (Plan, error) {
	out := Plan{Image: p.Image, Workdir: p.Workdir}
	if err := m.enforceable(&out); err != nil {
		return Plan{}, err
	}
	image, absent := m.facts.inspect(ctx, out.Image)
	if absent == nil {
		if err := m.takeImage(ctx, &out, image); err != nil {
			return Plan{}, err
		}
	} else if !errors.Is(absent, ErrImageAbsent) {
		return Plan{}, absent
	}
	volumes := m.withWorkdir(p)
	for _, v := range volumes {
		mt, err := m.resolve(v)
		if err != nil {
			return Plan{}, err
		}
		out.mounts = append(out.mounts, mt)
		out.Warnings = append(out.Warnings, m.labelAdvice(v)...)
	}
	if absent == nil {
		if err := m.fitImage(ctx, &out, volumes); err != nil {
			return Plan{}, err
		}
	}
	if err := m.checkWorkdir(&out); err != nil {
		return Plan{}, err
	}
	if err := m.chooseUser(&out); err != nil {
		return Plan{}, err
	}
	return out, absent
}

// fitImage makes sure that the mounts have their places in the image.
func (m *Manager) fitImage(ctx context.Context, p *Plan, mounts []policy.Mount) error {
	var targets []string
	for _, v := range mounts {
		if v.Within == "" {
			targets = append(targets, v.Target)
		}
	}
	if _, err := m.facts.paths(ctx, p.facts, p.imageID, targets...); err != nil { // all at once
		return err
	}
	for _, v := range mounts {
		if err := m.checkTarget(ctx, p, v); err != nil {
			return err
		}
	}
	return m.placeWorkspace(ctx, p)
}

// takeImage makes sure that the agent can work in an image.
func (m *Manager) takeImage(ctx context.Context, p *Plan, image engine.Image) error {
	var err error
	if p.facts, err = m.facts.about(ctx, image); err != nil {
		return err
	}
	p.imageID, p.ImageNames = image.ID, slices.Concat(image.Names, image.DigestNames)
	return p.facts.usable(p.Image)
}

// Workspace names where the agent works, for all runs that work there: the
// host's directory and where it is seen or, without a volume, the path alone.
func (p *Plan) Workspace() string {
	dir := path.Clean(p.Workdir)
	if v := p.covers(dir); v != nil {
		return fmt.Sprintf("volume %q at %q", filepath.Join(v.source, strings.TrimPrefix(dir, v.target)), dir)
	}
	return fmt.Sprintf("workdir %q", dir)
}

// enforceable refuses runs whose limits would have no effect, unless the
// operator has waived them.
func (m *Manager) enforceable(p *Plan) error {
	if m.cfg.Info.EnforcesLimits {
		return nil
	}
	const why = "this host's engine enforces no memory, CPU and process limits (rootless on cgroup v1)"
	if !m.cfg.AllowUnenforced {
		return stromboli.Errorf(stromboli.NotEnforced, "%s: run the server as root, use a host with cgroup v2, "+
			"or set STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true to run without them", why)
	}
	p.Warnings = append(p.Warnings, stromboli.Warning{Code: string(stromboli.NotEnforced), Message: why + "; the run goes on without them"})
	return nil
}

// resolve follows a volume's source through all symlinks and makes sure that
// what it leads to lies below an allowed directory.
func (m *Manager) resolve(v policy.Mount) (mount, error) {
	field := v.Field
	// One answer for what is missing and for what lies elsewhere: an agent that
	// plants links must not learn by them what this host has.
	source, err := filepath.EvalSymlinks(v.Source)
	if err != nil || !m.allowed(source) {
		hint := ""
		if m.cfg.Container {
			hint = "; " + samePath
		}
		return mount{}, stromboli.FieldError(field, "%s is not there, or leads outside the allowed directories (STROMBOLI_AGENT_ALLOWED_VOLUMES)%s", v.Source, hint)
	}
	if m.cfg.Container && !m.fromHost(source) {
		return mount{}, stromboli.FieldError(field, "%s is the server's container's own: %s", v.Source, samePath)
	}
	info, err := os.Lstat(source)
	if err != nil {
		return mount{}, stromboli.FieldError(field, "%s can't be read on the server's host", v.Source)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return mount{}, stromboli.FieldError(field, "%s is neither a directory nor a regular file", v.Source)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return mount{}, errors.New("this system doesn't tell inodes")
	}
	return mount{
		source: source, target: v.Target, field: field, readOnly: v.ReadOnly, noExec: v.NoExec,
		dev: st.Dev, ino: st.Ino, uid: int(st.Uid), gid: int(st.Gid), aclUID: writersByACL(source),
	}, nil
}

// allowed reports whether a resolved path lies below an allowed directory. The
// server's own files are never given to a sandbox, whatever is allowed.
func (m *Manager) allowed(source string) bool {
	rules := m.volumes.Load()
	for _, own := range append([]string{m.cfg.DataDir, m.cfg.Sessions, m.cfg.Shared}, rules.protected...) {
		if below(source, own) || below(own, source) {
			return false
		}
	}
	for _, root := range rules.allowed {
		resolved, err := filepath.EvalSymlinks(root)
		if err == nil && below(source, resolved) {
			return true
		}
	}
	return false
}

// below reports whether p is dir or lies below it; both are clean.
func below(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// checkTarget refuses mount points that the engine would have to make inside
// another volume, or would reach through a symlink of the image.
func (m *Manager) checkTarget(ctx context.Context, p *Plan, v policy.Mount) error {
	if v.Within != "" {
		return p.checkNested(v)
	}
	link, err := m.facts.symlink(ctx, p.facts, p.imageID, v.Target)
	if err != nil {
		return err
	}
	if link != "" {
		return stromboli.FieldError(v.Field, "%s goes through %s, a symlink of the image; name the path that it leads to", v.Target, link)
	}
	return nil
}

// checkNested makes sure that a mount point inside another volume exists.
func (p *Plan) checkNested(v policy.Mount) error {
	for _, outer := range p.mounts {
		if outer.target != v.Within {
			continue
		}
		root, err := os.OpenRoot(outer.source)
		if err != nil {
			return stromboli.FieldError(v.Field, "%s lies inside the volume at %s, which is not a directory", v.Target, outer.target)
		}
		info, err := root.Stat(strings.TrimPrefix(v.Target, outer.target+"/"))
		_ = root.Close()
		if err != nil || !info.IsDir() {
			return stromboli.FieldError(v.Field, "%s lies inside the volume at %s and is no directory there; create it on the host first", v.Target, outer.target)
		}
	}
	return nil
}

// placeWorkspace decides where the session's own workspace is mounted: at the
// working directory if nothing else is there, else at its usual place.
func (m *Manager) placeWorkspace(ctx context.Context, p *Plan) error {
	covered := p.covers(p.Workdir) != nil || below(p.Workdir, HomePath) || below(p.Workdir, "/tmp")
	if !covered && p.Workdir != WorkspacePath {
		exists, err := m.facts.directory(ctx, p.facts, p.imageID, p.Workdir)
		if err != nil {
			return err
		}
		if !exists && m.cfg.KeepWorkdir {
			return stromboli.FieldError("workdir", "%s is covered by no volume and is not in the image, and this server makes no working directories "+
				"(STROMBOLI_AGENT_WORKDIR_AUTO_CREATE=false)", p.Workdir)
		}
		if !exists {
			p.workspaceAt = p.Workdir
			p.Warnings = append(p.Warnings, stromboli.Warning{
				Code: "workdir_empty",
				Message: fmt.Sprintf("workdir %s is covered by no volume and is not in the image: the agent works in the session's own directory there; "+
					"mount one with podman.volumes (below STROMBOLI_AGENT_ALLOWED_VOLUMES)", p.Workdir),
			})
			return nil
		}
	}
	for _, v := range p.mounts {
		if below(v.target, WorkspacePath) || below(WorkspacePath, v.target) {
			return nil
		}
	}
	p.workspaceAt = WorkspacePath
	return nil
}

// covers returns the innermost volume that holds dir, or nil.
func (p *Plan) covers(dir string) *mount {
	var best *mount
	for i := range p.mounts {
		v := &p.mounts[i]
		if below(dir, v.target) && (best == nil || len(v.target) > len(best.target)) {
			best = v
		}
	}
	return best
}

// chooseUser decides who the agent is: the owner of the workspace, so that
// what it writes belongs to whom the directory belongs, and never root.
func (m *Manager) chooseUser(p *Plan) error {
	p.UID, p.GID, p.ownSession = agentUID, agentUID, true
	ws := p.covers(path.Clean(p.Workdir))
	if ws == nil || ws.readOnly || m.cfg.Info.Rootless {
		return nil
	}
	if ws.uid != 0 {
		p.UID, p.GID, p.ownSession = ws.uid, ws.gid, false
		if p.GID == 0 {
			p.GID = p.UID // never root's group
		}
		return nil
	}
	if ws.aclUID[agentUID] {
		p.ownSession = false // the list names this uid, whoever the session's last agent was
		return nil
	}
	field := "podman.volumes"
	if ws.field == "workdir" {
		field = ws.field
	}
	return stromboli.FieldError(field, "%s belongs to root, and an agent never runs as root: give the directory another owner "+
		"(chown 1000:1000), let uid %d write by an ACL (setfacl -m u:%d:rwx), or mount it read-only (podman.volumes, with :ro)", ws.source, agentUID, agentUID)
}
