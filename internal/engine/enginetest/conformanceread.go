package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

func testList(ctx context.Context, t *testing.T, s *Suite) {
	spec := s.Spec("sleep")
	spec.Labels = s.Labels("group", "one")
	running := s.Run(ctx, t, spec)
	other := s.Spec("exit", "3")
	other.Labels = s.Labels("group", "two")
	ended := s.Run(ctx, t, other)
	if _, err := s.Engine.Wait(ctx, ended); err != nil {
		t.Fatal(err)
	}
	ids := func(labels map[string]string) (ids []string) {
		list, err := s.Engine.List(ctx, labels)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			ids = append(ids, c.ID)
		}
		return ids
	}
	if got := ids(s.Labels("group", "one")); !slices.Equal(got, []string{running}) {
		t.Errorf("group one: %v", got)
	}
	if got := ids(s.Labels("group", "")); !slices.Contains(got, running) || !slices.Contains(got, ended) || len(got) != 2 {
		t.Errorf("any group: %v", got)
	}
	if got := ids(s.Labels("group", "three")); len(got) != 0 {
		t.Errorf("group three: %v", got)
	}
	list, err := s.Engine.List(ctx, s.Labels("group", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.ID == running && (c.State != engine.StateRunning || c.PID == 0 || c.Name != spec.Name || c.Labels["group"] != "one" || c.Image != s.Image) {
			t.Errorf("running: %+v", c)
		}
		if c.ID == ended && (c.State != engine.StateExited || c.ExitCode != 3) {
			t.Errorf("ended: %+v", c)
		}
	}
}

func testInForce(ctx context.Context, t *testing.T, s *Suite) {
	spec := s.Spec("exit", "0")
	_, mount := Shared(t)
	mount.ReadOnly = true
	spec.Mounts = []engine.Mount{mount}
	info, err := s.Engine.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	created, err := s.Engine.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if !info.EnforcesLimits && len(created.Warnings) == 0 {
		t.Error("limits without effect, and no warning")
	}
	c, err := s.Engine.Inspect(ctx, created.ID)
	f := c.InForce
	if err != nil || !f.ReadOnlyRoot || !f.NoNewPrivileges || f.Network != "none" || f.Privileged || f.SeccompProfile != "default" ||
		f.User != "0:0" || len(f.BoundingSet) != 3 || len(f.Mounts) != 1 || !f.Mounts[0].ReadOnly || f.Mounts[0].Source != mount.Source {
		t.Errorf("in force: %+v, %v", f, err)
	}
	if info.EnforcesLimits && (f.MemoryBytes != spec.MemoryBytes || f.NanoCPUs != spec.NanoCPUs || f.CPUShares != spec.CPUShares ||
		f.PidsLimit != spec.PidsLimit || info.LimitsSwap && f.MemorySwapBytes != spec.MemoryBytes) {
		t.Errorf("limits in force: %+v", f)
	}
}

// testUserNS makes a container with ids of its own.
func testUserNS(ctx context.Context, t *testing.T, s *Suite) {
	info, err := s.Engine.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.Rootless || !info.MapsImages {
		t.Log("not with this engine")
		return
	}
	spec := s.Spec("sleep")
	spec.UserNS = OwnIDs()
	c, err := s.Engine.Inspect(ctx, s.Run(ctx, t, spec))
	if err != nil || c.State != engine.StateRunning || !slices.Equal(c.InForce.UIDs, spec.UserNS.UIDs) || !slices.Equal(c.InForce.GIDs, spec.UserNS.GIDs) {
		t.Errorf("in force: %+v, %v", c.InForce, err)
	}
}

// OwnIDs is a user namespace of ids that are nobody's on the host.
func OwnIDs() engine.UserNS {
	return engine.UserNS{
		UIDs: []engine.IDRange{{Container: 0, Host: 2_100_000_000, Size: 65536}},
		GIDs: []engine.IDRange{{Container: 0, Host: 2_100_100_000, Size: 65536}},
	}
}

func testPaths(ctx context.Context, t *testing.T, s *Suite) {
	id := s.Create(ctx, t, s.Spec("exit", "0")) // never started
	for path, want := range map[string]engine.PathStat{
		"/etc/passwd":  {Name: "passwd", Size: int64(len(PasswdText))},
		"/lib/lib.txt": {Name: "lib.txt", Size: 4},
	} {
		got, err := s.Engine.StatPath(ctx, id, path)
		got.Mode &= fs.ModeType
		if err != nil || got != want {
			t.Errorf("stat %s: %+v, %v; want %+v", path, got, err, want)
		}
	}
	if st, err := s.Engine.StatPath(ctx, id, "/lib"); err != nil || st.Mode&fs.ModeSymlink == 0 || st.LinkTarget != "/usr/lib" {
		t.Errorf("stat a symlink: %+v, %v", st, err)
	}
	if st, err := s.Engine.StatPath(ctx, id, "/tmp"); err != nil || !st.Mode.IsDir() || st.LinkTarget != "" {
		t.Errorf("stat a directory: %+v, %v", st, err)
	}
	for path, want := range map[string]string{"/lib/new/dir": "/lib", "/usr/lib/new": "", "/tmp": "", "/nope/a/b": ""} {
		if got, err := engine.FindSymlink(ctx, s.Engine, id, path); got != want || err != nil {
			t.Errorf("symlink in %s: %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := s.Engine.StatPath(ctx, id, "/nope/nothing"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("stat a missing path: %v", err)
	}
	if data, err := s.Engine.ReadFile(ctx, id, "/etc/passwd", 1000); err != nil || string(data) != PasswdText {
		t.Errorf("read: %q, %v", data, err)
	}
	if _, err := s.Engine.ReadFile(ctx, id, "/etc/passwd", 5); !errors.Is(err, engine.ErrTooLarge) {
		t.Errorf("read beyond the limit: %v", err)
	}
	if _, err := s.Engine.ReadFile(ctx, id, "/tmp", 5); err == nil {
		t.Error("a directory was read as a file")
	}
	if _, err := s.Engine.ReadFile(ctx, id, "/nope", 5); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("read a missing file: %v", err)
	}
}

func testStats(ctx context.Context, t *testing.T, s *Suite) {
	info, err := s.Engine.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id := s.Run(ctx, t, s.Spec("sleep"))
	st, err := s.Engine.Stats(ctx, id)
	if !info.EnforcesLimits {
		t.Logf("without cgroups: %+v, %v", st, err)
		return
	}
	if err != nil || st.MemoryBytes <= 0 || st.Pids < 1 || st.MemoryLimit != 128<<20 {
		t.Errorf("stats: %+v, %v", st, err)
	}
}

func testEvents(ctx context.Context, t *testing.T, s *Suite) {
	since := time.Now()
	spec := s.Spec("exit", "4")
	spec.Labels = s.Labels("wanted", "yes")
	id := s.Run(ctx, t, spec)
	s.Run(ctx, t, s.Spec("exit", "0"))
	if _, err := s.Engine.Wait(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Engine.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	var seen []string
	following, stop := context.WithCancel(ctx)
	defer stop()
	for e, err := range s.Engine.Events(following, engine.EventFilter{Labels: s.Labels("wanted", "yes"), Since: since}) {
		if err != nil {
			t.Fatalf("events after %v: %v", seen, err)
		}
		if e.ID != id || e.Name != spec.Name || e.Labels["wanted"] != "yes" {
			t.Errorf("another's event: %+v", e)
		}
		if e.Action == "died" && e.ExitCode != 4 {
			t.Errorf("died: %+v", e)
		}
		seen = append(seen, e.Action)
		if e.Action == "remove" {
			break
		}
	}
	order := []string{"create", "start", "died", "remove"}
	for _, action := range seen {
		if len(order) > 0 && action == order[0] {
			order = order[1:]
		}
	}
	if len(order) > 0 {
		t.Errorf("events %v lack %v", seen, order)
	}
	stop()
	for _, err := range s.Engine.Events(following, engine.EventFilter{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("events after the context's end: %v", err)
		}
	}
}

func testImages(ctx context.Context, t *testing.T, s *Suite) {
	e := s.Engine
	i, err := e.ImageInspect(ctx, s.Image)
	if err != nil || i.ID == "" || !strings.HasPrefix(i.Digest, "sha256:") || i.User != "7:8" || i.Workdir != "/work" ||
		!slices.Equal(i.Entrypoint, []string{"/probe"}) || !slices.Contains(i.Env, "FROM_IMAGE=yes") ||
		!slices.Equal(i.Command, []string{"exit", "9"}) || i.Labels["stromboli.test.image"] != "yes" || !slices.Contains(i.Names, s.Image) {
		t.Errorf("inspect: %+v, %v", i, err)
	}
	const missing = "localhost/stromboli-test/none:1"
	if _, err := e.ImageInspect(ctx, missing); !errors.Is(err, engine.ErrImageMissing) || !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("inspect a missing image: %v", err)
	}
	for ref, want := range map[string]bool{s.Image: true, missing: false} {
		if got, err := e.ImageExists(ctx, ref); got != want || err != nil {
			t.Errorf("exists %s: %v, %v", ref, got, err)
		}
	}
	list, err := e.ImageList(ctx)
	if err != nil || !slices.ContainsFunc(list, func(i engine.Image) bool { return slices.Contains(i.Names, s.Image) }) {
		t.Errorf("list: %+v, %v", list, err)
	}
	ref := s.Image + "-imported"
	id, err := e.ImageImport(ctx, bytes.NewReader(Rootfs([]byte("other"))), ref)
	if err != nil || id == "" {
		t.Fatalf("import: %q, %v", id, err)
	}
	spec := s.Spec("exit", "0")
	spec.Image = ref
	container := s.Create(ctx, t, spec)
	if err := e.ImageRemove(ctx, ref); !errors.Is(err, engine.ErrConflict) {
		t.Errorf("remove an image in use: %v", err)
	}
	if err := e.Remove(ctx, container); err != nil {
		t.Fatal(err)
	}
	if err := e.ImageRemove(ctx, ref); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := e.ImageRemove(ctx, ref); err != nil {
		t.Errorf("remove again: %v", err)
	}
	if _, err := e.ImageLoad(ctx, strings.NewReader("no archive")); err == nil {
		t.Error("garbage was loaded")
	}
}
