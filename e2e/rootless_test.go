package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// rootlessTests are run again as an ordinary user.
func rootlessTests() []string {
	return []string{"TestRunWritesIntoVolume", "TestIsolation", "TestUnenforced", "TestOwnStore", "TestRootlessSurvival", "TestServerInContainer", "TestEngineSecrets", "TestRootHooks"}
}

// TestRootless is the rootless half of the end-to-end tests: this program
// again, as an ordinary user that is made for it and removed, beside a store
// of the user's that is of no use (vfs).
func TestRootless(t *testing.T) {
	if suite.rootless {
		t.Skip("this is the rootless half already")
	}
	var leftovers []string
	var u *enginetest.User
	t.Cleanup(func() { // after the user's removal
		for _, dir := range leftovers {
			if err := os.RemoveAll(dir); err != nil {
				t.Errorf("removing what the user left: %v", err)
			}
		}
		if u != nil {
			rootlessGone(t, u)
		}
	})
	u = enginetest.NewUser(t)
	t.Cleanup(func() { leftovers = rootlessOwned(t, u.UID, "/tmp", "/var/tmp", "/run") }) // before it: the uid may be someone else's afterwards
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin, program, cache := filepath.Join(u.Dir, "stromboli"), filepath.Join(u.Dir, "e2e"), filepath.Join(u.Dir, "cache")
	rootlessCopy(t, suite.bin, bin, u)
	rootlessCopy(t, self, program, u)
	rootlessCopy(t, "testdata", filepath.Join(u.Dir, "testdata"), u)
	rootlessCopy(t, "../images/server/Containerfile", filepath.Join(u.Dir, "testdata", "Containerfile"), u)
	for _, part := range []string{"images", "cli"} {
		rootlessCopy(t, filepath.Join(suite.cache, part), filepath.Join(cache, part), u)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := u.Command(ctx, nil, "podman", "--storage-driver", "vfs", "info", "--format", "{{.Store.GraphDriverName}}").Output(); err != nil || strings.TrimSpace(string(out)) != "vfs" {
		t.Fatalf("making a vfs store: %v, %s", err, out)
	}
	cmd := u.Command(ctx, []string{
		"STROMBOLI_TEST_BIN=" + bin, "STROMBOLI_CACHE_DIR=" + cache, "STROMBOLI_TEST_REQUIRE=podman,user",
	}, program, "-test.run", "^("+strings.Join(rootlessTests(), "|")+")$", "-test.v", "-test.timeout=4m")
	cmd.Dir = u.Dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as an ordinary user: %v", err)
	}
	for _, name := range rootlessTests() {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not pass as an ordinary user", name)
		}
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("%s", out)
	}
	rootlessDemo(ctx, t, u, bin, cache)
}

// rootlessDemo does what `make run` does for an ordinary user: the program
// chooses and prepares an engine by itself.
func rootlessDemo(ctx context.Context, t *testing.T, u *enginetest.User, bin, cache string) {
	t.Helper()
	env := []string{"STROMBOLI_CACHE_DIR=" + cache, "STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true", "STROMBOLI_SERVER_ADDRESS=127.0.0.1:0"}
	for _, args := range [][]string{{"setup", "--image"}, {"run", "--serve", "--demo", "--", "Please say hello."}} {
		out, err := u.Command(ctx, env, bin, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("stromboli %s as an ordinary user: %v\n%s", args[0], err, out)
		}
		if args[0] == "run" && (!strings.Contains(string(out), "DEMO") || !strings.Contains(string(out), "uid=1000(agent)")) {
			t.Errorf("stromboli run as an ordinary user printed\n%s", out)
		}
	}
	data := filepath.Join(u.Home, ".local", "share", "stromboli")
	if _, err := os.Stat(filepath.Join(data, "engine", "store", "overlay-images")); err != nil {
		t.Errorf("the program's own store beside the user's vfs store: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(data, "sb", "*")); err != nil || len(left) != 0 {
		t.Errorf("sandboxes are left: %v, %v", left, err)
	}
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory: %v, %v", info, err)
	}
}

// rootlessCopy makes a file or a directory the user's own, by hard links where
// that is possible: only root can make them, and the data stays root's.
func rootlessCopy(t *testing.T, from, to string, u *enginetest.User) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return errors.Join(os.MkdirAll(target, 0o755), os.Lchown(filepath.Dir(target), u.UID, u.GID), os.Lchown(target, u.UID, u.GID))
		case !d.Type().IsRegular() || strings.HasPrefix(d.Name(), ".lock"):
			return nil // the user makes its own locks
		}
		if info, err := d.Info(); err == nil && info.Mode()&0o004 != 0 && os.Link(path, target) == nil {
			return nil
		}
		return rootlessCopyFile(path, target)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func rootlessCopyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// rootlessOwned lists what lies directly in some directories and belongs to uid.
func rootlessOwned(t *testing.T, uid int, dirs ...string) (owned []string) {
	t.Helper()
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			var st syscall.Stat_t
			path := filepath.Join(dir, e.Name())
			if syscall.Lstat(path, &st) == nil && int(st.Uid) == uid {
				owned = append(owned, path)
			}
		}
	}
	return owned
}

// rootlessGone checks that nothing of a user is left.
func rootlessGone(t *testing.T, u *enginetest.User) {
	t.Helper()
	if _, err := user.Lookup(u.Name); err == nil {
		t.Errorf("the user %s is still there", u.Name)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), u.Name+":") {
			t.Errorf("%s still names %s (%v)", file, u.Name, err)
		}
	}
	if _, err := os.Lstat(u.Home); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the home is still there: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), u.Home) {
		t.Errorf("something is still mounted in %s (%v)", u.Home, err)
	}
}

// rootlessOnly skips a test that proves something about rootless engines only.
func rootlessOnly(t *testing.T) {
	t.Helper()
	if !suite.rootless {
		enginetest.Missing(t, "user", "TestRootless runs this as an ordinary user")
	}
}

// TestUnenforced: where the engine can't enforce limits a server doesn't start,
// and with the operator's leave runs go on and say so.
func TestUnenforced(t *testing.T) {
	rootlessOnly(t)
	s := prepare(t)
	info, err := suite.engine.Info(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if info.EnforcesLimits {
		// That they hold is for TestIsolation to show.
		t.Log("this engine enforces limits; nothing to refuse")
		s.up()
		job, err := s.c.Run(s.ctx(), spec(text("fine")))
		if err != nil || job.Status != stromboli.Completed || slices.ContainsFunc(job.Warnings, isUnenforced) {
			t.Fatalf("%+v, %v", job, err)
		}
		return
	}
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, "STROMBOLI_RESOURCES_ALLOW_UNENFORCED=") })
	if err := s.tryUp(); err == nil || !strings.Contains(err.Error(), "STROMBOLI_RESOURCES_ALLOW_UNENFORCED") {
		t.Errorf("without leave: %v", err)
	}
	s.env = append(s.env, "STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true")
	s.up()
	for range 2 {
		job, err := s.c.Run(s.ctx(), spec(text("fine")))
		if err != nil || job.Status != stromboli.Completed {
			t.Fatalf("with leave: %+v, %v", job, err)
		}
		if !slices.ContainsFunc(job.Warnings, isUnenforced) {
			t.Errorf("with leave, but without a warning: %+v", job.Warnings)
		}
	}
}

func isUnenforced(w stromboli.Warning) bool { return w.Code == string(stromboli.NotEnforced) }

// TestOwnStore: an ordinary user whose own store is vfs gets an overlay store
// of the program's own, and the user's is left alone.
func TestOwnStore(t *testing.T) {
	rootlessOnly(t)
	info, err := suite.engine.Info(t.Context())
	if err != nil || !info.Rootless || info.GraphDriver != "overlay" || !suite.engine.Own() {
		t.Errorf("engine: %+v, own: %v, %v", info, suite.engine.Own(), err)
	}
	store := filepath.Join(os.Getenv("HOME"), ".local", "share", "containers", "storage")
	if _, err := os.Stat(filepath.Join(store, "vfs-images")); err != nil {
		t.Errorf("the user's vfs store: %v", err)
	}
	if _, err := os.Stat(filepath.Join(store, "overlay-images")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an overlay store was made in the user's: %v", err)
	}
}

// TestRootlessSurvival: the server is killed in mid-answer, and the run ends as
// if it had not been.
func TestRootlessSurvival(t *testing.T) {
	rootlessOnly(t)
	s := start(t)
	const words = "one two three four five six seven eight nine ten eleven twelve"
	step := text(words)
	step.PaceMS, step.Chunk = 150, 4
	in := keyed("survival", bash("id -u > before"), step)
	job, err := s.c.RunAsync(s.ctx(), in)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the model's second answer", func() bool { return len(s.stub.Requests("survival")) == 2 })
	s.kill()
	s.up()
	s.events(job.JobID)
	got, err := s.c.Job(s.ctx(), job.JobID)
	if err != nil || got.Status != stromboli.Completed || got.Output != words {
		t.Errorf("after the kill: %+v, %v", got, err)
	}
	if n := len(s.stub.Requests("survival")); n != 2 {
		t.Errorf("the model was asked %d times, want 2", n)
	}
	b, err := os.ReadFile(filepath.Join(s.data, "sessions", job.SessionID, "workspace", "before"))
	if err != nil || string(b) != fmt.Sprintln(1000) {
		t.Errorf("the agent was uid %q, %v", b, err)
	}
	waitFor(t, "the sandbox to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}
