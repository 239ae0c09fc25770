package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// tarOf makes a layer: a name that ends in / is a directory, a text that begins
// with -> a symlink.
func tarOf(t *testing.T, files map[string]string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(text))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if link, ok := strings.CutPrefix(text, "->"); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, link, 0, ""
		}
		must(t, w.WriteHeader(h))
		_, err := w.Write([]byte(text))
		must(t, err)
	}
	must(t, w.Close())
	return &b
}

const glibcImage = "test/glibc"

// fixture is a Manager on a fake engine, with an allowed root for volumes.
type fixture struct {
	*Manager
	engine *enginetest.Fake
	root   string
	calls  atomic.Int64 // of the engine's Create
}

func newFixture(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{root: t.TempDir()}
	f.engine = enginetest.NewFake(enginetest.FakeConfig{Fail: func(method string) error {
		if method == "Create" {
			f.calls.Add(1)
		}
		return nil
	}})
	t.Cleanup(f.engine.Close)
	for image, files := range map[string]map[string]string{
		glibcImage: {
			"bin/": "", "bin/bash": "bash", "lib64/ld-linux-x86-64.so.2": "ld", "lib/ld-linux-aarch64.so.1": "ld",
			"etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n", "srv/": "", "app/": "", "link": "->/srv",
		},
		"test/musl":   {"usr/local/bin/bash": "bash", "lib/ld-musl-x86_64.so.1": "ld", "lib/ld-musl-aarch64.so.1": "ld"},
		"test/nobash": {"bin/sh": "sh"},
	} {
		_, err := f.engine.ImageImport(t.Context(), tarOf(t, files), image)
		must(t, err)
	}
	info, err := f.engine.Info(t.Context())
	must(t, err)
	cfg := Config{
		Engine: f.engine, Info: info, DataDir: t.TempDir(), Instance: "test", Volumes: []string{f.root},
		Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	f.Manager = New(cfg)
	return f
}

// dir makes a directory that a volume may name.
func (f *fixture) dir(t *testing.T, name string, uid, gid int) string {
	t.Helper()
	path := filepath.Join(f.root, name)
	must(t, os.MkdirAll(path, 0o755))
	must(t, os.Lchown(path, uid, gid))
	return path
}

func plan(workdir string, mounts ...policy.Mount) policy.Plan {
	for i := range mounts {
		mounts[i].Field = fmt.Sprintf("podman.volumes[%d]", i)
	}
	return policy.Plan{Image: glibcImage, Workdir: workdir, Mounts: mounts, MemoryBytes: 64 << 20}
}

func TestCheckVolumes(t *testing.T) {
	f := newFixture(t, nil)
	ok := f.dir(t, "ok", 1234, 1234)
	must(t, os.Mkdir(filepath.Join(ok, "sub"), 0o755))
	outside := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(f.root, "escape")))
	must(t, os.Symlink(ok, filepath.Join(f.root, "inside")))
	must(t, os.Symlink(outside, filepath.Join(ok, "out")))
	write(t, filepath.Join(f.root, "file"), "")
	must(t, unix.Mkfifo(filepath.Join(f.root, "fifo"), 0o600))
	for name, c := range map[string]struct {
		mounts []policy.Mount
		field  string // of the refusal; empty: allowed
	}{
		"allowed":             {mounts: []policy.Mount{{Source: ok, Target: "/app"}}},
		"a file":              {mounts: []policy.Mount{{Source: filepath.Join(f.root, "file"), Target: "/app/file"}}},
		"a link that stays":   {mounts: []policy.Mount{{Source: filepath.Join(f.root, "inside"), Target: "/app"}}},
		"a link out":          {mounts: []policy.Mount{{Source: filepath.Join(f.root, "escape"), Target: "/app"}}, field: "podman.volumes[0]"},
		"a link on the way":   {mounts: []policy.Mount{{Source: filepath.Join(ok, "out", "x"), Target: "/app"}}, field: "podman.volumes[0]"},
		"missing":             {mounts: []policy.Mount{{Source: filepath.Join(f.root, "no"), Target: "/app"}}, field: "podman.volumes[0]"},
		"outside":             {mounts: []policy.Mount{{Source: outside, Target: "/app"}}, field: "podman.volumes[0]"},
		"fifo":                {mounts: []policy.Mount{{Source: filepath.Join(f.root, "fifo"), Target: "/app"}}, field: "podman.volumes[0]"},
		"through image link":  {mounts: []policy.Mount{{Source: ok, Target: "/link/x"}}, field: "podman.volumes[0]"},
		"onto image link":     {mounts: []policy.Mount{{Source: ok, Target: "/link"}}, field: "podman.volumes[0]"},
		"nested, there":       {mounts: []policy.Mount{{Source: ok, Target: "/app"}, {Source: ok, Target: "/app/sub", Within: "/app"}}},
		"nested, missing":     {mounts: []policy.Mount{{Source: ok, Target: "/app"}, {Source: ok, Target: "/app/no", Within: "/app"}}, field: "podman.volumes[1]"},
		"nested, link out":    {mounts: []policy.Mount{{Source: ok, Target: "/app"}, {Source: ok, Target: "/app/out", Within: "/app"}}, field: "podman.volumes[1]"},
		"nested before outer": {mounts: []policy.Mount{{Source: ok, Target: "/app/no", Within: "/app"}, {Source: ok, Target: "/app"}}, field: "podman.volumes[0]"},
		"the data directory":  {mounts: []policy.Mount{{Source: f.cfg.DataDir, Target: "/app"}}, field: "podman.volumes[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.Check(t.Context(), plan("/workspace", c.mounts...))
			if c.field == "" {
				must(t, err)
				return
			}
			e, ok := errors.AsType[*stromboli.Error](err)
			if !ok || e.Code != stromboli.Invalid || len(e.Details) != 1 || e.Details[0].Field != c.field {
				t.Errorf("error %v, want one about %s", err, c.field)
			}
		})
	}
}

// The data directory stays out of reach though all of the disk is allowed.
func TestDataDirectoryIsNeverMounted(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Volumes = []string{"/"} })
	for _, source := range []string{f.cfg.DataDir, filepath.Dir(f.cfg.DataDir), filepath.Join(f.cfg.DataDir, "sb"), "/"} {
		must(t, os.MkdirAll(filepath.Join(f.cfg.DataDir, "sb"), 0o700))
		if _, err := f.Check(t.Context(), plan("/workspace", policy.Mount{Source: source, Target: "/app"})); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("%s: %v", source, err)
		}
	}
}

func TestWorkspaceAndUser(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil)
	theirs := f.dir(t, "theirs", 1234, 1235)
	roots := f.dir(t, "roots", 0, 0)
	rootGroup := f.dir(t, "group", 1236, 0)
	inner := f.dir(t, "theirs/inner", 4321, 4321)
	for name, c := range map[string]struct {
		workdir   string
		mounts    []policy.Mount
		uid, gid  int
		own       bool
		workspace string
		warning   string
		refused   bool
	}{
		"nothing":                  {workdir: "/workspace", uid: 1000, gid: 1000, own: true, workspace: "/workspace"},
		"a volume at the workdir":  {workdir: "/workspace", mounts: []policy.Mount{{Source: theirs, Target: "/workspace"}}, uid: 1234, gid: 1235},
		"a volume above it":        {workdir: "/app/x", mounts: []policy.Mount{{Source: theirs, Target: "/app"}}, uid: 1234, gid: 1235, workspace: "/workspace"},
		"a volume elsewhere":       {workdir: "/workspace", mounts: []policy.Mount{{Source: theirs, Target: "/app"}}, uid: 1000, gid: 1000, own: true, workspace: "/workspace"},
		"the innermost decides":    {workdir: "/app/inner", mounts: []policy.Mount{{Source: theirs, Target: "/app"}, {Source: inner, Target: "/app/inner", Within: "/app"}}, uid: 4321, gid: 4321, workspace: "/workspace"},
		"read-only":                {workdir: "/workspace", mounts: []policy.Mount{{Source: roots, Target: "/workspace", ReadOnly: true}}, uid: 1000, gid: 1000, own: true},
		"root's group":             {workdir: "/workspace", mounts: []policy.Mount{{Source: rootGroup, Target: "/workspace"}}, uid: 1236, gid: 1236},
		"root's":                   {workdir: "/workspace", mounts: []policy.Mount{{Source: roots, Target: "/workspace"}}, refused: true},
		"root's, elsewhere":        {workdir: "/workspace", mounts: []policy.Mount{{Source: roots, Target: "/app"}}, uid: 1000, gid: 1000, own: true, workspace: "/workspace"},
		"a workdir of the image":   {workdir: "/srv", uid: 1000, gid: 1000, own: true, workspace: "/workspace"},
		"a workdir nowhere":        {workdir: "/nowhere", uid: 1000, gid: 1000, own: true, workspace: "/nowhere", warning: "workdir_empty"},
		"a volume below workspace": {workdir: "/srv", mounts: []policy.Mount{{Source: theirs, Target: "/workspace/x"}}, uid: 1000, gid: 1000, own: true},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := f.Check(t.Context(), plan(c.workdir, c.mounts...))
			if c.refused {
				if !errors.Is(err, stromboli.Invalid) || !strings.Contains(err.Error(), "setfacl") {
					t.Errorf("error %v", err)
				}
				return
			}
			must(t, err)
			if p.UID != c.uid || p.GID != c.gid || p.ownSession != c.own || p.workspaceAt != c.workspace {
				t.Errorf("uid %d, gid %d, own %v, workspace at %q", p.UID, p.GID, p.ownSession, p.workspaceAt)
			}
			if got := len(p.Warnings) > 0; got != (c.warning != "") || got && p.Warnings[0].Code != c.warning {
				t.Errorf("warnings %v", p.Warnings)
			}
		})
	}
}

// acl writes a path's list: an entry of a user with rights, and a mask.
func acl(t *testing.T, path string, uid uint32, rights, mask uint16) {
	t.Helper()
	const any = 0xffffffff
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, any}, {aclUserTag, rights, uid}, {4, 5, any}, {aclMaskTag, mask, any}, {0x20, 5, any}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	if err := unix.Setxattr(path, aclName, b, 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("this file system has no access control lists")
	} else if err != nil {
		t.Fatal(err)
	}
}

func TestAccessControlLists(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil)
	for _, c := range []struct {
		uid          uint32
		rights, mask uint16
		allowed      bool
	}{{1000, 7, 7, true}, {1000, 5, 7, false}, {1000, 7, 5, false}, {1001, 7, 7, false}} {
		dir := f.dir(t, fmt.Sprintf("acl-%d-%d-%d", c.uid, c.rights, c.mask), 0, 0)
		acl(t, dir, c.uid, c.rights, c.mask)
		p, err := f.Check(t.Context(), plan("/workspace", policy.Mount{Source: dir, Target: "/workspace"}))
		if (err == nil) != c.allowed {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil {
			continue
		}
		// The list names uid 1000, whoever the session's agent was before.
		if rec := f.record(Spec{SessionUID: 1234, SessionGID: 1234}, p); rec.UID != 1000 || rec.GID != 1000 {
			t.Errorf("the agent is %d:%d", rec.UID, rec.GID)
		}
	}
	own, err := f.Check(t.Context(), plan("/workspace"))
	must(t, err)
	if rec := f.record(Spec{SessionUID: 1234, SessionGID: 1235}, own); rec.UID != 1234 || rec.GID != 1235 {
		t.Errorf("the session's agent is %d:%d", rec.UID, rec.GID)
	}
}

func TestUnenforcedLimits(t *testing.T) {
	none := func(c *Config) { c.Info.EnforcesLimits = false }
	if _, err := newFixture(t, none).Check(t.Context(), plan("/workspace")); !errors.Is(err, stromboli.NotEnforced) {
		t.Errorf("error %v", err)
	}
	f := newFixture(t, func(c *Config) { none(c); c.AllowUnenforced = true })
	p, err := f.Check(t.Context(), plan("/workspace"))
	if err != nil || len(p.Warnings) != 1 || p.Warnings[0].Code != string(stromboli.NotEnforced) {
		t.Errorf("warnings %v, %v", p.Warnings, err)
	}
}

func TestFacts(t *testing.T) {
	f := newFixture(t, nil)
	for image, code := range map[string]error{"test/nobash": stromboli.ImageMissing, "not/there": stromboli.ImageMissing} {
		p := plan("/workspace")
		p.Image = image
		if _, err := f.Check(t.Context(), p); !errors.Is(err, code) {
			t.Errorf("%s: %v", image, err)
		}
	}
	musl := plan("/workspace")
	musl.Image = "test/musl"
	p, err := f.Check(t.Context(), musl)
	if err != nil || p.facts.Glibc || p.facts.MuslLoader == "" || !p.facts.Bash {
		t.Errorf("%+v, %v", p.facts, err)
	}
	_, err = f.Check(t.Context(), plan("/nowhere"))
	must(t, err)
	before := f.calls.Load()
	for range 3 {
		_, err := f.Check(t.Context(), plan("/nowhere"))
		must(t, err)
	}
	// Another server on the same directory knows it too.
	again := New(f.cfg)
	_, err = again.Check(t.Context(), plan("/nowhere"))
	must(t, err)
	if n := f.calls.Load() - before; n != 0 {
		t.Errorf("%d containers to find out what was known", n)
	}
	// A damaged file is found out again.
	files, _ := filepath.Glob(filepath.Join(f.cfg.DataDir, "images", "*.json"))
	for _, file := range files {
		must(t, os.WriteFile(file, []byte("{"), 0o600))
	}
	_, err = New(f.cfg).Check(t.Context(), plan("/nowhere"))
	must(t, err)
	if n, err := f.Left(context.Background()); n != 0 || err != nil {
		t.Errorf("%d containers left, %v", n, err)
	}
}

// However many volumes there are, one container finds out about the image.
func TestManyVolumes(t *testing.T) {
	f := newFixture(t, nil)
	dir := f.dir(t, "v", 1000, 1000)
	var mounts []policy.Mount
	for i := range 500 {
		mounts = append(mounts, policy.Mount{Source: dir, Target: fmt.Sprintf("/srv/v%d", i)})
	}
	_, err := f.Check(t.Context(), plan("/workspace"))
	must(t, err)
	before := f.calls.Load()
	_, err = f.Check(t.Context(), plan("/workspace", mounts...))
	must(t, err)
	if n := f.calls.Load() - before; n != 1 {
		t.Errorf("%d containers", n)
	}
}

// Callers choose the paths; what is kept of them is bounded.
func TestFactsAreBounded(t *testing.T) {
	f := newFixture(t, nil)
	known, err := f.facts.of(t.Context(), glibcImage)
	must(t, err)
	f.facts.mu.Lock()
	entry := f.facts.known[known.Digest]
	entry.Paths = make(map[string]pathFact)
	for i := range maxPaths {
		entry.Paths[fmt.Sprintf("/p%d", i)] = pathFact{}
	}
	f.facts.known[known.Digest] = entry
	f.facts.mu.Unlock()
	if there, err := f.facts.directory(t.Context(), known, glibcImage, "/srv"); err != nil || !there {
		t.Errorf("%v, %v", there, err)
	}
	if n := len(f.facts.known[known.Digest].Paths); n > maxPaths {
		t.Errorf("%d paths are kept", n)
	}
}

func TestEngineErrors(t *testing.T) {
	for err, code := range map[error]stromboli.Code{
		&engine.Error{Kind: engine.ErrUnavailable}:  stromboli.EngineDown,
		&engine.Error{Kind: engine.ErrImageMissing}: stromboli.ImageMissing,
		&engine.Error{Kind: engine.ErrStorageFull}:  stromboli.StorageFull,
		&engine.Error{Kind: engine.ErrConflict}:     stromboli.Internal,
	} {
		if got := stromboli.CodeOf(engineError(err)); got != code {
			t.Errorf("%v is %s, want %s", err, got, code)
		}
	}
}
