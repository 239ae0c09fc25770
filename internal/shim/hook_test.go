package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func (b *box) hook(id, command string) Hook {
	p := b.bash("")
	return Hook{ID: id, Command: command, Env: p.Env, Dir: p.Dir, UID: p.UID, GID: p.GID, Deadline: patience}
}

// hookEnd reads and acknowledges lines after the given one to a hook's end.
func (s *server) hookEnd(after int64) ([]Line, HookStatus) {
	s.t.Helper()
	var all []Line
	for {
		lines, err := s.Next(ctx(s.t), after, 1)
		must(s.t, err)
		all = append(all, lines...)
		after = lines[0].Seq
		s.Ack(after)
		if lines[0].Stream == HookExit {
			status, err := ParseHookExit(lines[0].Data)
			must(s.t, err)
			return all, status
		}
	}
}

// running reports whether a process of the machine has the text in its command
// line.
func running(t *testing.T, text string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.Contains(string(b), text) {
			return true
		}
	}
	return false
}

// TestHooks: hooks run as the agent, once each, one at a time and before it; what they
// say comes in lines, both streams, and what they leave behind stays.
func TestHooks(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	first := b.hook("create/0", `id -u; id -g; pwd; echo "$HOME" >&2; read -r x || echo no input; echo once >> count; printf 'no newline'; exit 3`)
	must(t, s.Hook(ctx(t), first))
	lines, status := s.hookEnd(0)
	want := "1000\n1001\n" + b.work + "\nno input\nno newline\n"
	if got := text(lines, HookStdout); got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if got := text(lines, HookStderr); got != b.work+"\n" {
		t.Errorf("stderr %q", got)
	}
	begun, err := ParseHookStart(lines[0].Data)
	if err != nil || lines[0].Stream != HookStart || begun.ID != first.ID {
		t.Errorf("the first line is %s %q", lines[0].Stream, lines[0].Data)
	}
	if status.ID != first.ID || status.ExitCode != 3 || status.Cause != "" || status.Signal != "" || status.Duration <= 0 || status.Dropped != 0 {
		t.Errorf("ended as %+v", status)
	}
	must(t, s.Hook(ctx(t), first)) // is not run again

	slow := b.hook("create/1", "sleep 0.3; echo slow")
	must(t, s.Hook(ctx(t), slow))
	must(t, s.Hook(ctx(t), slow))
	wantCode(t, s.Hook(ctx(t), b.hook("other", "true")), CodeConflict)
	wantCode(t, s.Start(ctx(t), b.bash("true")), CodeConflict)
	after := lines[len(lines)-1].Seq
	lines, status = s.hookEnd(after)
	if text(lines, HookStdout) != "slow\n" || status.ExitCode != 0 || lines[0].Seq != after+1 {
		t.Errorf("%q, %+v", text(lines, HookStdout), status)
	}

	must(t, s.Start(ctx(t), b.bash("cat count; echo agent")))
	wantCode(t, s.Hook(ctx(t), b.hook("late", "true")), CodeConflict)
	agent, _ := s.finish(lines[len(lines)-1].Seq)
	if got := text(agent, Stdout); got != "once\nagent\n" {
		t.Errorf("the agent said %q", got)
	}
}

// TestHookLeavesAService: a hook ends when its own process does; what it has
// left behind goes on, whatever that prints, until the agent has ended.
func TestHookLeavesAService(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Hook(ctx(t), b.hook("post_start/0", `(: post-start-service; echo $BASHPID > pid; while :; do echo noise; echo more >&2; date +%s%N > alive; done) & 
		until [ -s pid ]; do :; done; echo started; for i in $(seq 2000); do echo line $i; done; echo last`)))
	lines, status := s.hookEnd(0)
	out := text(lines, HookStdout)
	if status.ExitCode != 0 || status.Duration > 20*time.Second || !strings.Contains(out, "started\n") || status.Dropped == 0 && !strings.Contains(out, "\nlast\n") {
		t.Errorf("%+v, %.200q", status, out)
	}
	must(t, s.Start(ctx(t), b.bash(`a=$(cat alive); for i in $(seq 100); do sleep 0.05; [ "$(cat alive)" != "$a" ] && { echo alive; break; }; done; kill -0 $(cat pid) && echo there`)))
	agent, _ := s.finish(lines[len(lines)-1].Seq)
	if got := text(agent, Stdout); got != "alive\nthere\n" {
		t.Errorf("the agent sees %q", got)
	}
	eventually(t, "the service is gone", func() bool { return !running(t, "post-start-service") })
}

// TestHookThatNeverEnds: its time ends it with everything that it has started,
// be it in other process groups and deaf to SIGTERM; nothing starts after it.
func TestHookThatNeverEnds(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	h := b.hook("create/0", `trap '' TERM; setsid bash -c ': never-ending-hook; trap "" TERM; touch other; while :; do sleep 0.1; done' & until [ -e other ]; do sleep 0.01; done; while :; do sleep 0.1; done`)
	h.Deadline = 300 * time.Millisecond
	begin := time.Now()
	must(t, s.Hook(ctx(t), h))
	_, status := s.hookEnd(0)
	if status.Cause != CauseDeadline || status.Signal != "SIGKILL" || status.ExitCode != 137 || status.OOM {
		t.Errorf("ended as %+v", status)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	wantCode(t, s.Hook(ctx(t), b.hook("create/1", "true")), CodeConflict)
	wantCode(t, s.Start(ctx(t), b.bash("true")), CodeConflict)
	if running(t, "never-ending-hook") {
		t.Error("a process of the hook's is left")
	}
}

// TestHookIsStopped: an order to stop, and a server's long absence, end a hook as they end
// an agent.
func TestHookIsStopped(t *testing.T) {
	t.Run("stop", func(t *testing.T) {
		b := newBox(t, nil)
		s := b.serve(nil)
		must(t, s.Hook(ctx(t), b.hook("create/0", "touch begun; sleep 300")))
		must(t, s.Stop(ctx(t), StopRequest{TermAfter: 10 * time.Millisecond, KillAfter: 5 * time.Second, Cause: "request"}))
		if _, status := s.hookEnd(0); status.Cause != "request" || status.Signal != "SIGTERM" {
			t.Errorf("ended as %+v", status)
		}
	})
	t.Run("orphan", func(t *testing.T) {
		b := newBox(t, func(c *Config) { c.OrphanTimeoutMS = 100 })
		s := b.serve(nil)
		must(t, s.Hook(ctx(t), b.hook("create/0", "echo begun; sleep 301; :")))
		s.die()
		eventually(t, "the hook ends", func() bool { return !running(t, "echo begun; sleep 301") })
		lines, status := b.serve(nil).hookEnd(0)
		if status.Cause != CauseOrphaned || text(lines, HookStdout) != "begun\n" {
			t.Errorf("%q, ended as %+v", text(lines, HookStdout), status)
		}
	})
}

// TestHookSurvivesTheServer: a hook goes on without a server; the next one asks
// for it again, which starts nothing, and hears everything.
func TestHookSurvivesTheServer(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	h := b.hook("create/0", "echo one; echo x >> count; until [ -e go ]; do sleep 0.01; done; echo two; exit 4")
	must(t, s.Hook(ctx(t), h))
	eventually(t, "it has begun", func() bool { _, err := os.Stat(filepath.Join(b.work, "count")); return err == nil })
	s.die()
	must(t, os.WriteFile(filepath.Join(b.work, "go"), nil, 0o644))
	next := b.serve(nil)
	must(t, next.Hook(ctx(t), h))
	lines, status := next.hookEnd(0)
	checkGapless(t, lines)
	count, err := os.ReadFile(filepath.Join(b.work, "count"))
	if err != nil || text(lines, HookStdout) != "one\ntwo\n" || status.ExitCode != 4 || string(count) != "x\n" {
		t.Errorf("%q, %+v, ran %q", text(lines, HookStdout), status, count)
	}
}

// TestHookOutputIsBounded: what is beyond the bound is counted, and the hook
// isn't held up.
func TestHookOutputIsBounded(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Hook(ctx(t), b.hook("create/0", "head -c 200000 /dev/zero | tr '\\0' x; echo; yes 0123456789 | head -c 3300000; exit 5")))
	lines, status := s.hookEnd(0)
	var kept int
	for _, l := range lines {
		kept += len(l.Data) + 1
	}
	if status.ExitCode != 5 || kept > hookOutput+hookLine || status.Dropped < 1<<20 || lines[1].Dropped != 200000-hookLine {
		t.Errorf("%+v; %d bytes kept, %d of the first line", status, kept, len(lines[1].Data))
	}
}

func TestHookRefusals(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	for name, change := range map[string]func(*Hook){
		"no id": func(h *Hook) { h.ID = "" }, "no deadline": func(h *Hook) { h.Deadline = 0 }, "a relative directory": func(h *Hook) { h.Dir = "x" },
		"root as the agent": func(h *Hook) { h.UID = 0 }, "NUL": func(h *Hook) { h.Command = "a\x00b" },
	} {
		h := b.hook("x", "true")
		change(&h)
		if err := s.Hook(ctx(t), h); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	h := b.hook("nowhere", "true")
	h.Dir = "/nowhere"
	wantCode(t, s.Hook(ctx(t), h), CodeStart)
	lines, status := s.hookEnd(0)
	if len(lines) != 2 || status.Cause != CauseNotStarted || status.ExitCode != -1 {
		t.Errorf("%d lines, %+v", len(lines), status)
	}
	must(t, s.Hook(ctx(t), b.hook("next", "exit 0")))
	if _, status := s.hookEnd(2); status.ExitCode != 0 {
		t.Errorf("%+v", status)
	}
}

// TestHookAsRoot: a hook that runs as the sandbox's root has the powers that the
// sandbox gives to its root, and none of the groups.
func TestHookAsRoot(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	h := b.hook("create/0", `id -u; id -G; grep -E '^(NoNewPrivs|CapEff|CapInh|CapAmb)' /proc/self/status`)
	h.Root = true
	must(t, s.Hook(ctx(t), h))
	lines, status := s.hookEnd(0)
	want := "0\n0\nCapInh:\t0000000000000000\nCapEff:\t00000000000000e0\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n"
	if got := text(lines, HookStdout); status.ExitCode != 0 || got != want {
		t.Errorf("%+v, %q, want %q", status, got, want)
	}
	forever := b.hook("create/1", `trap '' TERM; setsid bash -c 'trap "" TERM; echo root-forever; while :; do sleep 0.1; done' & while :; do sleep 0.1; done`)
	forever.Root, forever.Deadline = true, 200*time.Millisecond
	must(t, s.Hook(ctx(t), forever))
	if _, status := s.hookEnd(lines[len(lines)-1].Seq); status.Cause != CauseDeadline || status.Signal != "SIGKILL" {
		t.Errorf("%+v", status)
	}
	eventually(t, "all is gone", func() bool { return !running(t, "echo root-forever") })
}

func TestMakeDir(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	for range 2 {
		must(t, s.MakeDir(ctx(t), filepath.Join(b.work, "a/b"), agentUID, agentGID))
	}
	if got := strings.TrimSpace(runShell(t, "stat -c '%u:%g %a' "+b.work+"/a/b")); got != "1000:1001 755" {
		t.Errorf("it is %s", got)
	}
	wantCode(t, s.MakeDir(ctx(t), filepath.Join(b.run, "a"), agentUID, agentGID), CodePermission)
	must(t, os.WriteFile(filepath.Join(b.work, "file"), nil, 0o644))
	wantCode(t, s.MakeDir(ctx(t), filepath.Join(b.work, "file"), agentUID, agentGID), CodeFailed)
}
