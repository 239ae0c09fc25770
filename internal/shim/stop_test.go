package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStopBeforeStart(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Stop(ctx(t), StopRequest{Cause: "cancel"}))
	wantCode(t, s.Start(ctx(t), b.bash("true")), CodeConflict)
}

// Everything of the agent's uid dies with it: background children, own
// sessions, those that ignore SIGTERM, and ones that keep the pipes open.
func TestNothingSurvivesTheAgent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		stop   *StopRequest
		want   ExitStatus
	}{
		"background child holds the pipes": {
			script: `(trap '' TERM HUP; sleep 1000) & setsid sleep 1000 & sleep 0.1; echo out; exit 3`,
			want:   ExitStatus{ExitCode: 3},
		},
		"term": {
			script: `setsid sleep 1000 & trap 'echo got TERM; exit 9' TERM; echo up; while :; do sleep 0.05; done`,
			stop:   &StopRequest{KillAfter: time.Minute, Cause: "cancel"},
			want:   ExitStatus{ExitCode: 9, Cause: "cancel"},
		},
		"kill": {
			script: `trap '' TERM; (trap '' TERM; setsid sleep 1000) & echo up; while :; do sleep 0.05; done`,
			stop:   &StopRequest{TermAfter: 50 * time.Millisecond, KillAfter: 200 * time.Millisecond, Cause: "cancel"},
			want:   ExitStatus{ExitCode: 137, Signal: "SIGKILL", Cause: "cancel"},
		},
		"forks without end": {
			script: `trap '' TERM; f() { (setsid sleep 0.2; f) & }; for i in 1 2 3 4 5 6 7 8; do f; done; echo up; while :; do sleep 0.05; done`,
			stop:   &StopRequest{KillAfter: 300 * time.Millisecond, Cause: "cancel"},
			want:   ExitStatus{ExitCode: 137, Signal: "SIGKILL", Cause: "cancel"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, nil)
			s := b.serve(nil)
			must(t, s.Start(ctx(t), b.bash(c.script)))
			lines, err := s.Next(ctx(t), 0, 1)
			must(t, err)
			if c.stop != nil {
				must(t, s.Stop(ctx(t), StopRequest{TermAfter: time.Hour, KillAfter: time.Hour, Cause: c.stop.Cause}))
				must(t, s.Stop(ctx(t), *c.stop)) // tightened
			}
			rest, status := s.finish(lines[0].Seq)
			checkGapless(t, append(lines, rest...))
			if status != c.want {
				t.Errorf("exit %+v, want %+v", status, c.want)
			}
			if left := b.processes(); len(left) != 1 {
				t.Errorf("left in the sandbox: %v, want PID 1 only", left)
			}
		})
	}
}

// processes lists the command names in the sandbox, zombies included.
func (b *box) processes() []string {
	root := fmt.Sprintf("/proc/%d/ns/pid", b.cmd.Process.Pid)
	want, err := os.Readlink(root)
	must(b.t, err)
	links, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	must(b.t, err)
	var names []string
	for _, l := range links {
		if got, err := os.Readlink(l); err == nil && got == want {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(l), "../comm"))
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}

func TestDeadlineAndOrphanTimeoutNeedNoServer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Config, *Process)
		cause  string
	}{
		"deadline": {func(_ *Config, p *Process) { p.Deadline = 600 * time.Millisecond }, CauseDeadline},
		"orphaned": {func(c *Config, _ *Process) { c.OrphanTimeoutMS = 500 }, CauseOrphaned},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var proc Process
			b := newBox(t, func(cfg *Config) { c.change(cfg, &proc) })
			p := b.bash(`trap 'echo ending; exit 4' TERM; echo $$ > ` + b.work + `/pid; while :; do sleep 0.02; done`)
			p.Deadline = proc.Deadline
			s := b.serve(nil)
			must(t, s.Start(ctx(t), p))
			eventually(t, "the agent is up", func() bool {
				fi, err := os.Stat(b.work + "/pid")
				return err == nil && fi.Size() > 0
			})
			s.die()
			must(t, os.Remove(b.socket()))
			eventually(t, "the agent is ended", func() bool { return len(b.processes()) == 1 })
			lines, status := b.serve(nil).finish(0)
			if want := (ExitStatus{ExitCode: 4, Cause: c.cause}); status != want {
				t.Errorf("exit %+v, want %+v", status, want)
			}
			if got := text(lines, Stdout); got != "ending\n" {
				t.Errorf("output %q", got)
			}
		})
	}
}

// An agent that is not orphaned for long enough goes on.
func TestOrphanTimeoutStartsAnew(t *testing.T) {
	b := newBox(t, func(c *Config) { c.OrphanTimeoutMS = 1500 })
	p := b.bash(`for i in $(seq 40); do echo $i; sleep 0.1; done`) // 4 s
	var all []Line
	for life := 0; ; life++ {
		s := b.serve(nil)
		must(t, s.Start(ctx(t), p))
		lines, err := s.Next(ctx(t), int64(len(all)), 100)
		must(t, err)
		all = append(all, lines...)
		s.die()
		if all[len(all)-1].Stream == Exit {
			break
		}
		if !wait(ctx(t), 300*time.Millisecond) {
			t.Fatal("time is up")
		}
	}
	status, err := ParseExit(all[len(all)-1].Data)
	must(t, err)
	if status != (ExitStatus{}) {
		t.Errorf("exit %+v, want a normal one", status)
	}
}
