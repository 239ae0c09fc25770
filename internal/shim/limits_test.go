package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// cgroup makes a cgroup with one limit, in whichever version the machine has,
// and puts the next boxes of the test into it.
func cgroup(t *testing.T, controller, v1File, v2File, value string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make a cgroup")
	}
	parent, file := filepath.Join("/sys/fs/cgroup", controller), v1File
	if _, err := os.Stat(parent); err != nil {
		parent, file = "/sys/fs/cgroup", v2File
		_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	dir := filepath.Join(parent, fmt.Sprintf("shim-test-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	t.Cleanup(func() { eventually(t, "the cgroup is empty", func() bool { return os.Remove(dir) == nil }) })
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		t.Skipf("no %s limit here: %v", controller, err)
	}
	t.Setenv(cgroupEnv, dir)
}

func TestOOM(t *testing.T) {
	cgroup(t, "memory", "memory.limit_in_bytes", "memory.max", "200M")
	const hog = `printf -v x %0400000000d 0; echo ${#x}`
	for name, c := range map[string]struct {
		script string
		want   ExitStatus
	}{
		"the agent":             {hog, ExitStatus{ExitCode: 137, Signal: "SIGKILL", OOM: true}},
		"a child only":          {"(" + hog + "); exit 5", ExitStatus{ExitCode: 5}},
		"killed by its own":     {"kill -9 $$", ExitStatus{ExitCode: 137, Signal: "SIGKILL"}},
		"the shell tells of it": {"(" + hog + "); exit $?", ExitStatus{ExitCode: 137, OOM: true}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, nil)
			s := b.serve(nil)
			must(t, s.Start(ctx(t), b.bash(c.script)))
			if _, status := s.finish(0); status != c.want {
				t.Errorf("exit %+v, want %+v", status, c.want)
			}
		})
	}
}

// An agent that has used up every process the sandbox may have is ended all
// the same, and nothing of its output is lost.
func TestForkBombAtThePidsLimit(t *testing.T) {
	cgroup(t, "pids", "pids.max", "pids.max", "80")
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash(`trap '' TERM; bomb() { while :; do sleep 1000 & done; }; bomb 2>/dev/null & bomb 2>/dev/null & echo up; while :; do :; done`)))
	lines, err := s.Next(ctx(t), 0, 1)
	must(t, err)
	eventually(t, "the limit is reached", func() bool { return len(b.processes()) > 50 })
	for range 5 {
		s.drop() // the shim can still do everything else
		must(t, s.Start(ctx(t), b.bash("")))
	}
	must(t, s.Stop(ctx(t), StopRequest{TermAfter: 0, KillAfter: 500 * time.Millisecond, Cause: "cancel"}))
	rest, status := s.finish(lines[0].Seq)
	checkGapless(t, append(lines, rest...))
	if want := (ExitStatus{ExitCode: 137, Signal: "SIGKILL", Cause: "cancel"}); status != want {
		t.Errorf("exit %+v, want %+v", status, want)
	}
	if left := b.processes(); len(left) != 1 {
		t.Errorf("left in the sandbox: %v", left)
	}
}

func TestFindOOMCounter(t *testing.T) {
	for name, c := range map[string]struct {
		cgroup string
		files  map[string]string
		want   int64
		ok     bool
	}{
		"v2 in a namespace of its own": {"0::/\n", map[string]string{"memory.events": "low 0\noom 4\noom_kill 3\n"}, 3, true},
		"v2 with the host's tree": {"0::/a/b\n", map[string]string{
			"a/b/memory.events": "oom_kill 5\n", "memory.events": "oom_kill 9\n",
		}, 5, true},
		"v1 mounted at its root": {"4:memory:/pod/x\n0::/\n", map[string]string{
			"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		}, 2, true},
		"v1 with the host's tree": {"4:cpu,memory:/pod/x\n", map[string]string{
			"memory/pod/x/memory.oom_control": "oom_kill 7\n", "memory/memory.oom_control": "oom_kill 1\n",
		}, 7, true},
		"hybrid": {"4:memory:/x\n0::/x\n", map[string]string{
			"memory/x/memory.oom_control": "oom_kill 1\n", "x/memory.events": "oom_kill 8\n",
		}, 1, true},
		"nothing":   {"0::/\n", nil, 0, false},
		"malformed": {"what\n", map[string]string{"memory.events": "oom_kill x\n"}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, content := range c.files {
				path = filepath.Join(root, path)
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				must(t, os.WriteFile(path, []byte(content), 0o644))
			}
			proc := filepath.Join(root, "proc-self-cgroup")
			must(t, os.WriteFile(proc, []byte(c.cgroup), 0o644))
			got, ok := findOOMCounter(root, proc).read()
			if got != c.want || ok != c.ok {
				t.Errorf("%d, %v; want %d, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		raw string
		ok  bool
	}{
		"minimal":         {`{"sandbox":"x","token":"y"}`, true},
		"no token":        {`{"sandbox":"x"}`, false},
		"no sandbox":      {`{"token":"x"}`, false},
		"not JSON":        {`{`, false},
		"spool too small": {`{"sandbox":"x","token":"y","spool_limit_bytes":1000000}`, false},
		"small lines":     {`{"sandbox":"x","token":"y","spool_limit_bytes":1000000,"line_limit_bytes":1000}`, true},
		"too long":        {`{"sandbox":"x","token":"y"}` + string(make([]byte, maxConfig)), false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), ConfigName)
			must(t, os.WriteFile(path, []byte(c.raw), 0o644))
			cfg, err := readConfig(path)
			if (err == nil) != c.ok {
				t.Fatalf("error is %v", err)
			}
			if name == "minimal" && (cfg.OrphanTimeoutMS != 600_000 || cfg.SpoolLimitBytes != 64<<20 ||
				cfg.LineLimitBytes != 8<<20 || cfg.MaxForwards != 256 || cfg.HoldMS != 300_000 || cfg.ForwardAddr != DefaultForwardAddr) {
				t.Errorf("defaults are %+v", cfg)
			}
		})
	}
	if _, err := readConfig(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing configuration is accepted")
	}
}

func TestMainRefusesToBeAnythingButPID1(t *testing.T) {
	if code := Main([]string{"stromboli-shim"}); code == 0 {
		t.Error("it ran")
	}
	if code := Main([]string{"stromboli-shim", "--no-such-flag"}); code == 0 {
		t.Error("it took an unknown flag")
	}
}
