package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

func TestWorkdirOfTheHost(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil)
	app := f.dir(t, "app", 1234, 1234)
	f.dir(t, "app/cache", 1234, 1234)
	roots := f.dir(t, "roots", 0, 0)
	write(t, filepath.Join(f.root, "file"), "")
	must(t, os.Symlink(t.TempDir(), filepath.Join(f.root, "escape")))
	must(t, os.Symlink(app, filepath.Join(f.root, "inside")))
	named := func(dir string, volumes ...policy.Mount) policy.Plan {
		p := plan(dir, volumes...)
		p.HostWorkdir = &policy.Mount{Source: dir, Target: dir, Field: "workdir"}
		return p
	}
	for name, c := range map[string]struct {
		plan    policy.Plan
		source  string // of the mount at the workdir; empty: none
		field   string // of the refusal
		warning string
	}{
		"a directory":      {plan: named(app), source: app},
		"a link inside":    {plan: named(filepath.Join(f.root, "inside")), source: app},
		"a link outside":   {plan: named(filepath.Join(f.root, "escape")), warning: "workdir_empty"},
		"missing":          {plan: named(filepath.Join(f.root, "no")), warning: "workdir_empty"},
		"a file":           {plan: named(filepath.Join(f.root, "file")), warning: "workdir_empty"},
		"root's":           {plan: named(roots), field: "workdir"},
		"a volume in it":   {plan: named(app, policy.Mount{Source: roots, Target: app + "/cache"}), source: app},
		"a hole in it":     {plan: named(app, policy.Mount{Source: roots, Target: app + "/new"}), field: "podman.volumes[0]"},
		"not to be looked": {plan: plan(app), warning: "workdir_empty"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := f.Check(t.Context(), c.plan)
			if c.field != "" {
				e, ok := errors.AsType[*stromboli.Error](err)
				if !ok || e.Code != stromboli.Invalid || len(e.Details) != 1 || e.Details[0].Field != c.field {
					t.Errorf("%v, want a refusal of %s", err, c.field)
				}
				return
			}
			must(t, err)
			v := p.covers(p.Workdir)
			if (v != nil) != (c.source != "") || v != nil && (v.source != c.source || v.target != p.Workdir) {
				t.Errorf("mounted: %+v", v)
			}
			if v != nil && (p.UID != 1234 || p.workspaceAt != WorkspacePath) {
				t.Errorf("uid %d, workspace at %s", p.UID, p.workspaceAt)
			}
			// Below /tmp, where tests may be, one is made without a word.
			want := c.warning != "" && !below(p.Workdir, "/tmp")
			if got := len(p.Warnings) == 1 && p.Warnings[0].Code == c.warning; got != want {
				t.Errorf("warnings %v", p.Warnings)
			}
		})
	}
}

// What is missing is made, save where it can't be or the server makes none.
func TestMissingWorkdir(t *testing.T) {
	makes, keeps := newFixture(t, nil), newFixture(t, func(c *Config) { c.KeepWorkdir = true })
	for name, c := range map[string]struct {
		workdir       string
		readOnly      bool
		seek          bool   // made or looked for in the sandbox
		refused       string // says why
		refusedByKeep bool
	}{
		"the volume itself":  {workdir: "/v"},
		"there":              {workdir: "/v/there"},
		"missing":            {workdir: "/v/new/er", seek: true, refusedByKeep: true},
		"missing, read-only": {workdir: "/v/new", readOnly: true, refused: "read-only"},
		"a file":             {workdir: "/v/file", refused: "not a directory"},
		"through a link out": {workdir: "/v/out/x", seek: true},
		"in the home":        {workdir: HomePath + "/x", seek: true},
		"in /tmp":            {workdir: "/tmp/x", seek: true},
		"in the image":       {workdir: "/srv"},
		"nowhere":            {workdir: "/nowhere", refusedByKeep: true},
		"the session's own":  {workdir: WorkspacePath},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range []*fixture{makes, keeps} {
				dir := f.dir(t, "v", os.Geteuid(), os.Getegid())
				must(t, os.MkdirAll(filepath.Join(dir, "there"), 0o755))
				must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
				if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil && !os.IsExist(err) {
					t.Fatal(err)
				}
				f.cfg.Info.Rootless = true // whose they are makes no difference here
				p, err := f.Check(t.Context(), plan(c.workdir, policy.Mount{Source: dir, Target: "/v", ReadOnly: c.readOnly}))
				why := c.refused
				if f == keeps && c.refusedByKeep {
					why = "STROMBOLI_AGENT_WORKDIR_AUTO_CREATE"
				}
				if why != "" {
					if !errors.Is(err, stromboli.Invalid) || !strings.Contains(err.Error(), why) {
						t.Errorf("error %v, want one that says %q", err, why)
					}
					continue
				}
				must(t, err)
				if p.seekWorkdir != c.seek {
					t.Errorf("looked for in the sandbox: %v", p.seekWorkdir)
				}
			}
		})
	}
}

// What the server keeps is no volume, by whatever name, though all of the disk
// is allowed.
func TestProtectedPaths(t *testing.T) {
	f := newFixture(t, nil)
	keys, sock := f.dir(t, "keys", 0, 0), f.dir(t, "engine", 0, 0)
	must(t, os.Symlink(keys, filepath.Join(f.root, "link")))
	f.SetVolumes([]string{"/"}, []string{filepath.Join(keys, "key"), filepath.Join(sock, "podman.sock")})
	for _, source := range []string{keys, sock, filepath.Join(f.root, "link"), f.root} {
		if _, err := f.Check(t.Context(), plan("/workspace", policy.Mount{Source: source, Target: "/app"})); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("%s: %v", source, err)
		}
	}
	_, err := f.Check(t.Context(), plan("/workspace", policy.Mount{Source: f.dir(t, "other", 0, 0), Target: "/app"}))
	must(t, err)
}

func TestVolumeLabels(t *testing.T) {
	f := newFixture(t, nil)
	dir := f.dir(t, "v", 1000, 1000)
	for _, label := range []string{"", "z", "Z"} {
		for _, selinux := range []bool{false, true} {
			f.cfg.Info.SELinux = selinux
			p, err := f.Check(t.Context(), plan("/workspace", policy.Mount{Source: dir, Target: "/app", Label: label}))
			must(t, err)
			if told := len(p.Warnings) == 1 && p.Warnings[0].Code == "volume_label"; told != (selinux && label != "") {
				t.Errorf("%q, SELinux %v: %v", label, selinux, p.Warnings)
			}
		}
	}
}
