package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/idmap"
)

// TestUserNamespace: what an agent is on the host while it runs, with a user
// namespace of its own and, as the control, without: whose ids it has, which of
// the host's files an agent could read that broke out, and what it takes from
// another sandbox's limits. What it writes belongs to the same owner both ways.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	if suite.rootless {
		enginetest.Missing(t, "root", "a rootless engine's sandboxes have its user's namespace")
	}
	if same, err := idmap.SameMounts(suite.engine.PID()); err != nil || !same {
		t.Skipf("the engine's service has a mount namespace of its own (%v)", err)
	}
	for mode, own := range map[string]bool{"auto": true, "none": false} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := start(t, "STROMBOLI_SANDBOX_USERNS="+mode)
			dir := ownershipDir(t, s, "repo", 1001, 1002)
			secret := filepath.Join(s.dir, "secret")
			if err := os.WriteFile(secret, []byte("1001's"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(secret, 1001, 1002); err != nil {
				t.Fatal(err)
			}
			for d := s.dir; d != "/tmp"; d = filepath.Dir(d) { // whoever it is may come as far as the file
				if err := os.Chmod(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			in := s.probeSpec(`id -u; id -g; cd /repo; echo x > made; mkdir dir; ln -s made link; touch -d @7 made; cat theirs; chmod 4755 made; touch asked
				until [ -e go ]; do sleep 0.05; done`, nil, ownershipAt(dir+":/repo", "/repo"))
			if err := os.WriteFile(filepath.Join(dir, "theirs"), []byte("root's\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			started, err := s.c.RunAsync(s.ctx(), in)
			if err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the agent", func() bool { _, err := os.Stat(filepath.Join(dir, "asked")); return err == nil })
			usernsOnHost(s, own, secret)
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s.events(started.JobID) // to the end
			if job, err := s.c.Job(s.ctx(), started.JobID); err != nil || job.Status != stromboli.Completed {
				t.Fatalf("%+v, %v", job, err)
			}
			if out := s.probed(started.SessionID); out != "1001\n1002\nroot's\n" {
				t.Errorf("the agent saw %q", out)
			}
			for _, name := range []string{"made", "dir", "link", "asked"} {
				ownershipIs(t, filepath.Join(dir, name), 1001, 1002)
			}
			ownershipIs(t, filepath.Join(s.data, "sessions", started.SessionID, "home"), 1001, 1002)
			a, err := s.c.Attestation(s.ctx(), started.JobID)
			if err != nil || a.UserNamespace != mode || a.Namespaces["user"] != own || (a.UserNamespaceWhy == "") != own {
				t.Errorf("the attestation: %q, %q, %v", a.UserNamespace, a.UserNamespaceWhy, err)
			}
			usernsNothingMounted(s)
		})
	}
}

// usernsOnHost looks at a sandbox with an agent at work from the host.
func usernsOnHost(s *server, own bool, secret string) {
	s.t.Helper()
	sandboxes := s.sandboxes()
	if len(sandboxes) != 1 {
		s.t.Fatalf("sandboxes: %v", sandboxes)
	}
	c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+sandboxes[0])
	if err != nil {
		s.t.Fatal(err)
	}
	usernsNothingMounted(s)
	uids := usernsProcesses(s.t, c.PID)
	if len(uids) < 2 {
		s.t.Fatalf("processes in the sandbox: %v", uids)
	}
	root, agent := uids[c.PID], -1
	for pid, uid := range uids {
		if pid != c.PID {
			agent = uid
		}
	}
	base := 0
	if own {
		if len(c.InForce.UIDs) != 1 || len(c.InForce.GIDs) != 1 {
			s.t.Fatalf("the engine's map: %+v", c.InForce)
		}
		if base = int(c.InForce.UIDs[0].Host); base < 2_000_200_000 {
			s.t.Errorf("the sandbox's root is %d on the host", base)
		}
	}
	if root != base || agent != base+1001 {
		s.t.Errorf("on the host the shim is %d and the agent %d, want %d and %d", root, agent, base, base+1001)
	}
	// An agent that broke out would be this on the host.
	cat := exec.CommandContext(s.ctx(), "cat", secret)
	cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(agent), Gid: uint32(base + 1002)}}
	out, err := cat.CombinedOutput()
	if read := err == nil; read == own {
		s.t.Errorf("with the agent's ids on the host a file of 1001's: %q, %v", out, err)
	}
}

// usernsProcesses gives the host's uids of the processes in a container.
func usernsProcesses(t *testing.T, first int) map[int]int {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	uids := map[int]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if other, err := os.Readlink("/proc/" + e.Name() + "/ns/pid"); err != nil || other != ns {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "Uid:" {
				uids[pid], _ = strconv.Atoi(f[1])
			}
		}
	}
	return uids
}

// usernsNothingMounted checks that no directory of the server's is mounted in
// this mount namespace, which is the engine's.
func usernsNothingMounted(s *server) {
	s.t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, s.dir) {
			s.t.Errorf("left mounted: %s", line)
		}
	}
}
