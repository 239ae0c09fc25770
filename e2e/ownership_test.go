package e2e_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// TestOwnership: whose the files are that an agent writes, with a rootful
// engine, and which volumes are refused.
func TestOwnership(t *testing.T) {
	if suite.rootless {
		enginetest.Missing(t, "root", "owners of directories matter to a rootful engine")
	}
	s := start(t)

	t.Run("group root", func(t *testing.T) {
		dir := ownershipDir(t, s, "grouped", 1001, 0)
		s.probe("echo x > /repo/made", nil, ownershipAt(dir+":/repo", "/repo"))
		ownershipIs(t, filepath.Join(dir, "made"), 1001, 1001)
	})
	t.Run("root", func(t *testing.T) {
		dir := ownershipDir(t, s, "roots", 0, 0)
		in := spec(text("never"))
		ownershipAt(dir+":/repo", "/repo")(&in)
		_, err := s.c.Run(s.ctx(), in)
		ownershipRefused(t, err, "belongs to root", "chown", "setfacl", ":ro")
	})
	t.Run("root, read-only", func(t *testing.T) {
		dir := ownershipDir(t, s, "rootsro", 0, 0)
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("readable\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, out := s.probe("cat /repo/file; id -u; touch /repo/made || echo refused", nil, ownershipAt(dir+":/repo:ro", "/repo"))
		if !strings.HasPrefix(out, "readable\n1000\n") || !strings.Contains(out, "Read-only file system") {
			t.Errorf("the agent saw %q", out)
		}
	})
	t.Run("root, with an ACL", func(t *testing.T) {
		dir := ownershipDir(t, s, "acl", 0, 0)
		ownershipACL(t, dir, 1000, 7)
		s.probe("echo x > /repo/made", nil, ownershipAt(dir+":/repo", "/repo"))
		ownershipIs(t, filepath.Join(dir, "made"), 1000, 1000)
		ownershipIs(t, dir, 0, 0)
		// One that lets the agent read only is no way out.
		ownershipACL(t, dir, 1000, 5)
		in := spec(text("never"))
		ownershipAt(dir+":/repo", "/repo")(&in)
		_, err := s.c.Run(s.ctx(), in)
		ownershipRefused(t, err, "belongs to root")
	})
	t.Run("links", func(t *testing.T) {
		dir := ownershipDir(t, s, "target", 1001, 1001)
		outside := filepath.Join(s.dir, "outside")
		if err := errors.Join(os.Mkdir(outside, 0o755), os.Symlink(dir, filepath.Join(s.volumes, "in")),
			os.Symlink(outside, filepath.Join(s.volumes, "out")), os.Symlink("/etc", filepath.Join(s.volumes, "etc"))); err != nil {
			t.Fatal(err)
		}
		s.probe("echo x > /repo/made", nil, ownershipAt(filepath.Join(s.volumes, "in")+":/repo", "/repo"))
		ownershipIs(t, filepath.Join(dir, "made"), 1001, 1001)
		for _, source := range []string{"out", "etc", "etc/nothing", "in/../out"} {
			in := spec(text("never"))
			in.Podman.Volumes = []string{s.volumes + "/" + source + ":/repo:ro"}
			_, err := s.c.Run(s.ctx(), in)
			if source == "in/../out" {
				ownershipRefused(t, err, `".."`)
				continue
			}
			ownershipRefused(t, err, "leads outside the allowed directories")
		}
	})
	t.Run("targets", func(t *testing.T) {
		outer, inner := ownershipDir(t, s, "outer", 1001, 1001), ownershipDir(t, s, "inner", 1002, 1002)
		if err := os.Mkdir(filepath.Join(outer, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc", filepath.Join(outer, "link")); err != nil {
			t.Fatal(err)
		}
		_, out := s.probe("id -u; echo x > /repo/sub/made || echo refused; echo x > /repo/made", nil, ownershipAt(outer+":/repo", "/repo"),
			func(in *stromboli.RunSpec) { in.Podman.Volumes = append(in.Podman.Volumes, inner+":/repo/sub") })
		if !strings.HasPrefix(out, "1001\n") || !strings.Contains(out, "refused") {
			t.Errorf("in a workspace of 1001 with a directory of 1002 in it the agent saw %q", out)
		}
		ownershipIs(t, filepath.Join(outer, "made"), 1001, 1001)
		for target, why := range map[string]string{
			"/repo/missing": "create it on the host first", "/repo/missing/deep": "create it on the host first",
			"/repo/link": "no directory there", "/repo/link/x": "no directory there",
			"/bin/tool": "a symlink of the image", "/lib/tool": "a symlink of the image", "/var/run/x": "a symlink of the image",
			"/etc/hosts": "the sandbox's own", "/run/stromboli/x": "the sandbox's own", "/home": "the sandbox's own", "/usr": "as a whole",
		} {
			in := spec(text("never"))
			in.Podman.Volumes = []string{outer + ":/repo", inner + ":" + target}
			_, err := s.c.Run(s.ctx(), in)
			if !ownershipRefused(t, err, why) {
				t.Errorf("… for the target %s", target)
			}
		}
		entries, err := os.ReadDir(outer)
		if err != nil || len(entries) != 3 { // sub, link, made
			t.Errorf("the refused targets left %v, %v", entries, err)
		}
	})
	t.Run("a workdir that is nowhere", func(t *testing.T) {
		job, err := s.c.Run(s.ctx(), func() stromboli.RunSpec {
			in := spec(bash("pwd; id -u; echo x > here"), text("done"))
			in.Workdir = "/nowhere/at/all"
			return in
		}())
		if err != nil || job.Status != stromboli.Completed {
			t.Fatalf("%+v, %v", job, err)
		}
		ownershipIs(t, filepath.Join(s.data, "sessions", job.SessionID, "workspace", "here"), 1000, 1000)
		if !slices.ContainsFunc(job.Warnings, func(w stromboli.Warning) bool {
			return w.Code == "workdir_empty" && strings.Contains(w.Message, "/nowhere/at/all")
		}) {
			t.Errorf("warnings: %+v", job.Warnings)
		}
		// A directory of the image takes no workspace, and gives no warning.
		job, out := s.probe("cd /usr/share; pwd", nil, func(in *stromboli.RunSpec) { in.Workdir = "/usr/share" })
		if out != "/usr/share\n" || len(job.Warnings) != 0 {
			t.Errorf("in a directory of the image: %q, warnings %+v", out, job.Warnings)
		}
	})
	t.Run("another owner", func(t *testing.T) { ownershipChanges(t, s) })
}

// ownershipChanges runs one session with workspaces of two owners: its home
// goes along, and links that the agent planted lead nowhere.
func ownershipChanges(t *testing.T, s *server) {
	victim := filepath.Join(s.dir, "victim")
	if err := os.WriteFile(victim, []byte("root's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	job, _ := s.probe("mkdir -m 700 -p ~/deep/er; echo kept > ~/deep/er/file; chmod 600 ~/deep/er/file; ln -s "+victim+" ~/deep/link; ln -s /etc ~/deep/etc", nil)
	home := filepath.Join(s.data, "sessions", job.SessionID, "home")
	ownershipIs(t, filepath.Join(home, "deep/er/file"), 1000, 1000)
	resume := func(in *stromboli.RunSpec) { in.Claude.SessionID, in.Claude.Resume = job.SessionID, true }
	dir := ownershipDir(t, s, "later", 1003, 1004)
	_, out := s.probe("id -u; id -g; cat ~/deep/er/file; whoami; echo more >> ~/deep/er/file", nil, ownershipAt(dir+":/repo", "/repo"), resume)
	if out != "1003\n1004\nkept\nagent\n" {
		t.Errorf("as the second owner the agent saw %q", out)
	}
	err := filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			ownershipIs(t, path, 1003, 1004)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	ownershipIs(t, victim, 0, 0)
	ownershipIs(t, "/etc", 0, 0)
	// Without a volume that decides, the session stays with its last owner.
	if _, out := s.probe("id -u; cat ~/deep/er/file", nil, resume); out != "1003\nkept\nmore\n" {
		t.Errorf("the third run of the session saw %q", out)
	}
}

// ownershipAt works in a volume.
func ownershipAt(volume, workdir string) func(*stromboli.RunSpec) {
	return func(in *stromboli.RunSpec) {
		in.Workdir = workdir
		in.Podman.Volumes = append(in.Podman.Volumes, volume)
	}
}

func ownershipDir(t *testing.T, s *server, name string, uid, gid int) string {
	t.Helper()
	dir := filepath.Join(s.volumes, name)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ownershipIs(t *testing.T, path string, uid, gid int) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil || int(st.Uid) != uid || int(st.Gid) != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d (%v)", path, st.Uid, st.Gid, uid, gid, err)
	}
}

func ownershipRefused(t *testing.T, err error, why ...string) bool {
	t.Helper()
	if !errors.Is(err, stromboli.Invalid) {
		t.Errorf("not refused as invalid: %v", err)
		return false
	}
	for _, w := range why {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("refused, but without %q: %v", w, err)
			return false
		}
	}
	return true
}

// ownershipACL does what `setfacl -m u:UID:PERM` does to a directory of mode
// 0755, without needing the program.
func ownershipACL(t *testing.T, path string, uid uint32, perm uint16) {
	t.Helper()
	const userObj, user, groupObj, mask, other, nobody = 1, 2, 4, 16, 32, 0xffffffff
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{userObj, 7, nobody}, {user, perm, uid}, {groupObj, 5, nobody}, {mask, 7, nobody}, {other, 5, nobody}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := unix.Lsetxattr(path, "system.posix_acl_access", acl, 0); err != nil {
		t.Fatalf("setting an ACL: %v", err)
	}
}
