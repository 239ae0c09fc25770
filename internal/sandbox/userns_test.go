package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/idmap"
)

func TestGiveIDs(t *testing.T) {
	f := newFixture(t, nil)
	f.userNSOnce.Do(func() { f.userNS = UserNS{Mode: UserNSAuto} })
	give := func(id string) record {
		t.Helper()
		rec := record{ID: id}
		must(t, f.giveIDs(&rec))
		return rec
	}
	a, b := give("a"), give("b")
	if a.IDBase == b.IDBase || a.IDBase < firstID || a.UserNS != UserNSAuto {
		t.Fatalf("%+v, %+v", a, b)
	}
	// What was given to somebody is skipped, and what a discarded sandbox had comes back.
	file := filepath.Join(t.TempDir(), "subuid")
	next := b.IDBase + rangeSize
	must(t, os.WriteFile(file, []byte("u:100000:65536\nbroken\ncontainers:"+fmt.Sprint(next+rangeSize-1)+":2\n"), 0o600))
	f.reserved = readSubIDs(file, file+".missing")
	if c := give("c"); c.IDBase != next+2*rangeSize {
		t.Errorf("c has %d, want %d", c.IDBase, next+2*rangeSize)
	}
	must(t, os.MkdirAll(f.Manager.dir("a"), 0o700))
	f.cfg.Egress = noEgress{}
	must(t, f.Discard(t.Context(), "a"))
	if d := give("d"); d.IDBase != a.IDBase {
		t.Errorf("the range of a discarded sandbox doesn't come back: %d", d.IDBase)
	}
	// A sandbox of the server before keeps its range.
	f.rememberIDs(record{ID: "kept", IDBase: next + 3*rangeSize})
	if e := give("e"); e.IDBase != next+4*rangeSize {
		t.Errorf("e has %d", e.IDBase)
	}
	// An owner whose id has no place in a range.
	for _, rec := range []record{{ID: "u", UID: rangeSize, GID: 1}, {ID: "g", UID: 1, GID: rangeSize}} {
		if must(t, f.giveIDs(&rec)); rec.UserNS != UserNSNone || rec.IDBase != 0 || rec.UserNSWhy == "" {
			t.Errorf("%+v", rec)
		}
	}
	f.reserved = subIDs{{0, 1 << 32}}
	if err := f.giveIDs(&record{ID: "none"}); err == nil || !strings.Contains(err.Error(), "/etc/subuid") {
		t.Errorf("without a range left: %v", err)
	}
}

type noEgress struct{}

func (noEgress) Add(context.Context, Door) error      { return nil }
func (noEgress) Remove(context.Context, string) error { return nil }

func TestFindUserNS(t *testing.T) {
	ready := func(c *Config) { c.UserNS, c.SameMounts = true, true }
	for name, c := range map[string]struct {
		change func(*Config)
		mode   string
		why    string
		root   bool
	}{
		"all there":       {func(*Config) {}, UserNSAuto, "", true},
		"rootless":        {func(c *Config) { c.Info.Rootless = true }, UserNSKeepID, "ordinary user", false},
		"off":             {func(c *Config) { c.UserNS = false }, UserNSNone, "STROMBOLI_SANDBOX_USERNS", false},
		"storage":         {func(c *Config) { c.Info.MapsImages = false }, UserNSNone, "overlay", false},
		"in a container":  {func(c *Config) { c.Container = true }, UserNSNone, "container", false},
		"other mounts":    {func(c *Config) { c.SameMounts = false }, UserNSNone, "mount namespace", true},
		"no such support": {func(c *Config) { c.Sessions = "/proc/self" }, UserNSNone, "owners", true},
	} {
		if c.root && os.Geteuid() != 0 {
			continue
		}
		f := newFixture(t, func(cfg *Config) { ready(cfg); c.change(cfg) })
		if got := f.UserNS(); got.Mode != c.mode || !strings.Contains(got.Why, c.why) || (got.Why == "") != (c.why == "") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	file := filepath.Join(t.TempDir(), "map")
	must(t, os.WriteFile(file, []byte("0 100000 65536\n"), 0o600))
	if ownsRanges(file) || ownsRanges("/proc/self/uid_map", file) || !ownsRanges("/proc/self/uid_map") {
		t.Error("a namespace of 65536 ids has the sandboxes', or the host's own hasn't")
	}
}

// stageFixture is a Manager that mounts, a session and a volume of uid 1001.
func stageFixture(t *testing.T) (*fixture, record, []engine.Mount) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	f := newFixture(t, func(c *Config) { c.UserNS, c.SameMounts, c.StageDir = true, true, filepath.Join(dir, "mounts") })
	t.Cleanup(func() { must(t, idmap.UnmountBelow(f.cfg.StageDir)) })
	volume := f.dir(t, "volume", 1001, 1001)
	write(t, filepath.Join(volume, "file"), "the user's")
	must(t, os.Chown(filepath.Join(volume, "file"), 1001, 1001))
	rec := record{ID: "box", UID: 1001, GID: 1001}
	must(t, f.giveIDs(&rec))
	return f, rec, []engine.Mount{{Source: volume, Target: "/v"}, {Source: filepath.Join(volume, "file"), Target: "/f"}}
}

// staysWhole checks that the user's files are all there.
func (f *fixture) staysWhole(t *testing.T) {
	t.Helper()
	path := filepath.Join(f.root, "volume", "file")
	if text, err := os.ReadFile(path); err != nil || string(text) != "the user's" || owner(t, path) != 1001 {
		t.Errorf("the user's file: %q, %v", text, err)
	}
}

func TestStage(t *testing.T) {
	f, rec, mounts := stageFixture(t)
	must(t, f.stage(&rec, mounts))
	if rec.UserNS != UserNSAuto || rec.UserNSWhy != "" {
		t.Fatalf("%+v", rec)
	}
	for path, want := range map[string]uint32{
		mounts[0].Source: rec.IDBase + 1001, filepath.Join(mounts[0].Source, "file"): rec.IDBase + 1001, mounts[1].Source: rec.IDBase + 1001,
	} {
		if uid := owner(t, path); uint32(uid) != want {
			t.Errorf("%s belongs to %d, want %d", path, uid, want)
		}
	}
	must(t, f.unstage(rec.ID))
	must(t, f.unstage(rec.ID)) // again
	if left, _ := os.ReadDir(f.cfg.StageDir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	f.staysWhole(t)
}

// TestStageFallsBack: a volume that can't be id-mapped costs the sandbox that,
// and says so; nothing stays mounted.
func TestStageFallsBack(t *testing.T) {
	f, rec, mounts := stageFixture(t)
	inner := filepath.Join(f.root, "volume", "inner")
	must(t, os.Mkdir(inner, 0o755))
	must(t, unix.Mount("proc", inner, "proc", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(inner, unix.MNT_DETACH)) })
	before := slices.Clone(mounts)
	mounts[0], mounts[1] = mounts[1], mounts[0] // the second fails
	must(t, f.stage(&rec, mounts))
	if rec.UserNS != UserNSNone || !strings.Contains(rec.UserNSWhy, f.root) || mounts[1] != before[0] || mounts[0] != before[1] {
		t.Errorf("%+v, %v", rec, mounts)
	}
	if got := rec.namespace(false); got.UIDs != nil || rec.IDBase != 0 {
		t.Errorf("ids: %v, root is %d", got, rec.IDBase)
	}
	if left, err := idmap.Below(f.cfg.StageDir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	// What is not there at all is an error.
	rec.UserNS = UserNSAuto
	if err := f.stage(&rec, []engine.Mount{{Source: filepath.Join(f.root, "missing")}}); err == nil {
		t.Error("a missing source was mounted")
	}
	f.staysWhole(t)
}

// TestSweepUnmounts: a server that died with its mounts up leaves them to the
// next one, which takes them away and nothing of what they led to.
func TestSweepUnmounts(t *testing.T) {
	f, rec, mounts := stageFixture(t)
	must(t, f.stage(&rec, mounts))
	other := filepath.Join(f.cfg.StageDir, "another server.box")
	must(t, os.Mkdir(other, 0o700))
	next := New(f.cfg)
	_, err := next.Sweep(t.Context(), Claims{})
	must(t, err)
	if left, err := idmap.Below(f.cfg.StageDir); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	if left, err := os.ReadDir(f.cfg.StageDir); len(left) != 1 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	f.staysWhole(t)
}

// TestUnstageRemovesNoFiles: what lies in a mount point that lost its mount is
// kept, and reported.
func TestUnstageRemovesNoFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has mount points")
	}
	f := newFixture(t, func(c *Config) { c.StageDir = t.TempDir() })
	kept := filepath.Join(f.stageDir("box"), "0", "kept")
	write(t, kept, "x")
	if err := f.unstage("box"); err == nil {
		t.Error("a mount point with a file in it was removed")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}

// TestRemoveTreeStopsAtMounts: nothing is removed through a mount, of whatever
// kind; without it, the same tree goes.
func TestRemoveTreeStopsAtMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	victim := t.TempDir()
	write(t, filepath.Join(victim, "file"), "the user's")
	for _, at := range []string{".", "deep/er", "with a space"} {
		dir := t.TempDir() + "/tree"
		write(t, filepath.Join(dir, "own"), "")
		point := filepath.Join(dir, at)
		must(t, os.MkdirAll(point, 0o755))
		must(t, unix.Mount(victim, point, "", unix.MS_BIND, ""))
		err := removeTree(dir)
		_, stat := os.Stat(filepath.Join(victim, "file"))
		must(t, unix.Unmount(point, unix.MNT_DETACH))
		if err == nil || !strings.Contains(err.Error(), "mount point") || stat != nil {
			t.Errorf("with a mount at %s: %v; the user's file: %v", at, err, stat)
		}
		must(t, removeTree(dir))
		if _, err := os.Stat(dir); err == nil {
			t.Error("the tree stayed without the mount")
		}
	}
}

// TestMapCache: namespaces are kept, and not without bound.
func TestMapCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces for mounts need root")
	}
	var c mapCache
	t.Cleanup(func() {
		for _, ns := range c.kept {
			_ = ns.Close()
		}
	})
	get := func(host uint32) (ns *os.File) {
		t.Helper()
		pair := idmap.Pair{Disk: 1000, Host: host}
		must(t, c.with([2]idmap.Pair{pair, pair}, func(f *os.File) error { ns = f; return nil }))
		return ns
	}
	first := get(firstID)
	if get(firstID) != first {
		t.Error("a namespace was made anew")
	}
	for i := range uint32(maxMaps) {
		get(firstID + 1 + i)
	}
	if len(c.kept) > maxMaps {
		t.Errorf("%d are kept", len(c.kept))
	}
	if get(firstID) == first {
		t.Error("one that was let go is still handed out")
	}
}

// TestUnstageElsewhere: mount points of root's are no business of an ordinary
// user's server.
func TestUnstageElsewhere(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("for an ordinary user")
	}
	closed := t.TempDir()
	f := newFixture(t, func(c *Config) { c.StageDir = filepath.Join(closed, "mounts") })
	must(t, os.Mkdir(f.cfg.StageDir, 0))
	must(t, f.unstage("box"))
	must(t, f.unstageAll())
}
