package e2e_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// heard is what a run's first tool call printed.
func (s *server) heard(t *testing.T, key string) string {
	t.Helper()
	all := s.requests(t, key)
	raw, _ := all[len(all)-1].toolResult()
	var said string
	if err := json.Unmarshal([]byte(raw), &said); err != nil {
		t.Fatalf("%s: the tool's result %s: %v", key, raw, err)
	}
	return said
}

// TestVolumes: each option of a volume is in force, a directory of the host's is
// mounted where the workdir names it, and a workdir that is missing is made or
// refused.
func TestVolumes(t *testing.T) {
	s := start(t)
	owner := 1000
	if os.Geteuid() != 0 {
		owner = os.Geteuid()
	}
	mine := s.volume("mine", owner)
	script := filepath.Join(mine, "script")
	if err := errors.Join(os.WriteFile(script, []byte("#!/bin/sh\necho SCRIPT RAN\n"), 0o755), os.Chmod(script, 0o755)); err != nil {
		t.Fatal(err)
	}
	outside, err := os.MkdirTemp("/var/tmp", "stromboli-outside") // not below the sandbox's /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(outside) })
	if err := errors.Join(os.Chmod(outside, 0o755), os.WriteFile(filepath.Join(outside, "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	at := func(key, workdir string, steps []modelstub.Step, volumes ...string) stromboli.RunSpec {
		in := keyed(key, append(steps, text("done"))...)
		in.Workdir, in.Podman.Volumes = workdir, volumes
		return in
	}
	one := func(command string) []modelstub.Step { return []modelstub.Step{bash(command)} }
	hears := func(key, has string) func(*testing.T, endedRun) {
		return func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if got := s.heard(t, key); !strings.Contains(got, has) || len(r.Warnings) != 0 {
				t.Errorf("the agent heard %q, want %q; warnings %v", got, has, r.Warnings)
			}
		}
	}
	belongs := func(t *testing.T, path string) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != owner {
			t.Errorf("%s belongs to %d, not %d", path, uid, owner)
		}
	}
	run := "/mnt/v/script || echo NOT RUN; echo x > /mnt/v/new || echo NOT WRITTEN"
	s.fleet(t, []fleetRun{
		{"all options", at("options", "", one(run), mine+":/mnt/v:ro,noexec,nosuid,nodev,z"), func(t *testing.T, r endedRun) {
			hears("options", "NOT RUN")(t, r)
			hears("options", "NOT WRITTEN")(t, r)
			a, err := s.c.Attestation(s.ctx(), r.ID)
			i := slices.IndexFunc(a.Mounts, func(m stromboli.AttestedMount) bool { return m.Target == "/mnt/v" })
			if err != nil || i < 0 || !a.Mounts[i].ReadOnly || !a.Mounts[i].NoExec || !a.Mounts[i].NoSUID || !a.Mounts[i].NoDev {
				t.Errorf("attested: %+v, %v", a.Mounts, err)
			}
		}},
		{"the control", at("control", "", one(run), mine+":/mnt/v:rw,Z"), func(t *testing.T, r endedRun) {
			hears("control", "SCRIPT RAN")(t, r)
			belongs(t, filepath.Join(mine, "new"))
		}},
		{"a directory of the host's", at("host", mine, one("pwd; touch here; stat -c %u here")), func(t *testing.T, r endedRun) {
			hears("host", mine+"\n1000")(t, r)
			belongs(t, filepath.Join(mine, "here"))
		}},
		{"missing in a volume", at("made", "/src/deep/er", one("pwd; touch here"), mine+":/src"), func(t *testing.T, r endedRun) {
			hears("made", "/src/deep/er")(t, r)
			belongs(t, filepath.Join(mine, "deep/er/here"))
		}},
		{"missing in the home", at("home", "/home/agent/a/b", one("pwd")), hears("home", "/home/agent/a/b")},
		{"missing in /tmp", at("tmp", "/tmp/a/b", one("pwd")), hears("tmp", "/tmp/a/b")},
		{"a name on the host that is outside", at("outside", outside, one("ls -A | wc -l")), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if got := s.heard(t, "outside"); !strings.HasPrefix(got, "0") || !r.warned("workdir_empty") {
				t.Errorf("the agent saw %q; warnings %v", got, r.Warnings)
			}
		}},
	})
	in := at("ro", "/src/none", one("pwd"), mine+":/src:ro")
	s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 400, "invalid_request", "workdir")
	if _, err := os.Stat(filepath.Join(mine, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a directory was made in a read-only volume")
	}
}

// TestOperatorsLimits: what a run asks for beyond the operator's maximum it gets
// not, is told, and what it gets is in force; working directories are made only
// where the server may; every directory may be a volume where it says so, but
// its own.
func TestOperatorsLimits(t *testing.T) {
	s := start(t, "STROMBOLI_RESOURCES_MAX_MEMORY=1100m", "STROMBOLI_RESOURCES_MAX_CPUS=1.2", "STROMBOLI_RESOURCES_MAX_CPU_SHARES=512", "STROMBOLI_RESOURCES_MAX_TIMEOUT=31m",
		"STROMBOLI_AGENT_WORKDIR_AUTO_CREATE=false", "STROMBOLI_AGENT_ALLOWED_VOLUMES=", "STROMBOLI_AGENT_ALLOW_ALL_VOLUMES=true")
	owner := 1000
	if os.Geteuid() != 0 {
		owner = os.Geteuid()
	}
	mine := s.volume("mine", owner)
	shares := 4096
	in := spec(bash("touch /mnt/v/here"), text("done"))
	in.Podman.Memory, in.Podman.CPUs, in.Podman.CPUShares, in.Podman.Timeout = "2g", "3", &shares, stromboli.Duration(32*60e9)
	in.Podman.Volumes = []string{mine + ":/mnt/v"}
	r := s.do(t, in)
	r.want(t, stromboli.Completed, "")
	if _, err := os.Stat(filepath.Join(mine, "here")); err != nil {
		t.Error(err)
	}
	clamped := 0
	for _, w := range r.Warnings {
		if w.Code == "limit_clamped" {
			clamped++
		}
	}
	if clamped != 4 || r.count(stromboli.EventWarning) < 4 {
		t.Errorf("warnings %v", r.Warnings)
	}
	a, err := s.c.Attestation(s.ctx(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Unenforced) == 0 {
		weight := a.Limits["cpu_shares"]
		if w, v2 := a.Limits["cpu_weight"]; v2 {
			weight = w
		}
		if a.Limits["memory_bytes"].InForce != 1100<<20 || a.Limits["nano_cpus"].InForce != 12e8 || weight.Asked < 1 || weight.InForce != weight.Asked {
			t.Errorf("limits %v", a.Limits)
		}
	}

	refuse := func(field string, change func(*stromboli.RunSpec)) {
		t.Helper()
		in := spec(text("never"))
		change(&in)
		s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 400, "invalid_request", field)
	}
	refuse("workdir", func(in *stromboli.RunSpec) { in.Workdir = "/nowhere" })
	refuse("workdir", func(in *stromboli.RunSpec) { in.Workdir, in.Podman.Volumes = "/v/none", []string{mine + ":/v"} })
	for _, own := range []string{s.data, s.dir, filepath.Dir(suite.engine.Socket()), suite.cache, "/"} {
		refuse("podman.volumes[0]", func(in *stromboli.RunSpec) { in.Podman.Volumes = []string{own + ":/v"} })
	}
	in = spec(text("never"))
	in.Workdir = "/home/agent/none"
	s.do(t, in).want(t, stromboli.Failed, stromboli.ReasonNotEnforced)
}
