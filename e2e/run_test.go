package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestRunWritesIntoVolume: the agent's tools work in the sandbox, and what they
// write into a mounted directory belongs to the directory's owner.
func TestRunWritesIntoVolume(t *testing.T) {
	s := start(t)
	owner := os.Geteuid()
	if owner == 0 {
		owner = 4242
	}
	repo := s.volume("repo", owner)
	in := spec(bash("echo from the agent > made.txt; id -u"), text("all done"))
	in.Workdir = "/repo"
	in.Podman.Volumes = []string{repo + ":/repo"}
	job, err := s.c.Run(s.ctx(), in)
	if err != nil {
		t.Fatal(err)
	}
	if job.Status != stromboli.Completed || job.Output != "all done" {
		t.Fatalf("status %s, output %q, error %q", job.Status, job.Output, job.Error)
	}
	info, err := os.Stat(filepath.Join(repo, "made.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != owner {
		t.Errorf("the file belongs to uid %d, not to the directory's owner %d", uid, owner)
	}
	b, err := os.ReadFile(filepath.Join(repo, "made.txt"))
	if err != nil || strings.TrimSpace(string(b)) != "from the agent" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	s.events(job.ID)
	waitFor(t, "the sandbox to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}

// volume makes a directory below the allowed root.
func (s *server) volume(name string, owner int) string {
	s.t.Helper()
	dir := filepath.Join(s.volumes, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, owner, owner); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}
