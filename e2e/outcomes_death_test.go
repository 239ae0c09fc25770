package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

func killedOutcomes() []outcome {
	var rows []outcome
	for _, c := range []struct{ command, crash string }{
		{"kill -9", "SIGKILL, 137"}, {"kill", "SIGTERM, 143"}, {"kill -HUP", "SIGHUP, 129"}, {"kill -SEGV", "SIGSEGV, 139"},
	} {
		signal, _, _ := strings.Cut(c.crash, ",")
		rows = append(rows, outcome{
			what: "the agent is ended by " + signal, status: stromboli.Crashed, reason: stromboli.ReasonSignal, http: 200, crash: c.crash,
			spec: steps(modelstub.Step{Text: "I begin.", ToolUse: bash("sleep 1; " + c.command + " $CLAUDE_PID; sleep 5").ToolUse}),
			check: func(t *testing.T, _ *server, r endedRun) {
				if c := r.CrashInfo; c.TaskCompleted || c.Signal == "SIGKILL" && c.PartialOutput != "I begin." {
					t.Errorf("crash_info is %+v", r.CrashInfo)
				}
			},
		})
	}
	return append(rows, outcome{
		what: "the agent's memory runs out", status: stromboli.Crashed, reason: stromboli.ReasonOOM, http: 200, crash: "SIGKILL, 137", root: true,
		spec: with(func(in *stromboli.RunSpec) { in.Podman.Memory = "64m" }, text("never said")),
	})
}

// boxOf waits until a run's agent uses a tool, and returns its sandbox.
func (s *server) boxOf(t *testing.T, id string) string {
	t.Helper()
	s.inTool(t, id)
	return s.sandboxOf(t, id)
}

// conmonOf is the pid of a container's monitor.
func (s *server) conmonOf(t *testing.T, box string) int {
	t.Helper()
	pid, running := s.survContainer(box)
	if _, parent := survStat(pid); running && parent > 1 {
		return parent
	}
	t.Fatalf("sandbox %s has no monitor", box)
	return 0
}

// descends reports whether a process is below another.
func (s *server) descends(pid, from int) bool {
	_, parent := survStat(pid)
	for parent > 1 && parent != from {
		_, parent = survStat(parent)
	}
	return parent == from
}

func strike(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

func lostOutcomes() []outcome {
	var rows []outcome
	lost := func(what string, during func(t *testing.T, s *server, box string)) {
		rows = append(rows, outcome{
			what: what, status: stromboli.Crashed, reason: stromboli.ReasonLost, http: 200, crash: "-1",
			spec:   steps(modelstub.Step{Text: "I begin.", ToolUse: bash(stayCommand("lost")).ToolUse}),
			during: func(t *testing.T, s *server, id string) { during(t, s, s.boxOf(t, id)) },
			check: func(t *testing.T, _ *server, r endedRun) {
				if r.CrashInfo.PartialOutput != "I begin." {
					t.Errorf("what was stored is not in crash_info: %+v", r.CrashInfo)
				}
			},
		})
	}
	lost("the shim, the sandbox's first process, is killed", func(t *testing.T, s *server, box string) {
		pid, _ := s.survContainer(box)
		strike(t, pid, syscall.SIGKILL)
	})
	lost("the container is stopped by others", func(t *testing.T, s *server, box string) {
		s.survPodman("kill", "--signal=KILL", "stromboli-"+box)
	})
	lost("the container is removed by others", func(t *testing.T, s *server, box string) {
		s.survPodman("rm", "-f", "-t", "0", "stromboli-"+box)
	})
	rows = append(rows, outcome{
		what: "the shim is killed because the sandbox's memory is used up", status: stromboli.Crashed, reason: stromboli.ReasonOOM, http: 200, crash: "-1", root: true,
		spec: func(s *server) stromboli.RunSpec {
			in := spec(bash(`until [ -e /tmp/go ]; do sleep 0.05; done; python3 -c 'x = b"x" * (600 << 20)'`))
			in.Podman.Memory = "400m"
			return in
		},
		during: func(t *testing.T, s *server, id string) {
			box := s.boxOf(t, id)
			// The agent offers itself to the kernel first, so that the shim
			// lives to tell; here it is taken off the list.
			first, _ := s.survContainer(box)
			var denied error
			survProcess(func(pid int) bool {
				adj := "-1000"
				if pid == first {
					adj = "1000"
				}
				if pid == first || s.descends(pid, first) {
					err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(adj), 0)
					if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
						denied = err
					}
				}
				return false
			})
			if denied != nil {
				cancel(t, s, id)
				t.Skip("nobody may be taken off the kernel's list here (the runner's TestShimOutOfMemory has this with a fake engine):", denied)
			}
			if err := os.WriteFile(filepath.Join(s.data, "sb", box, "tmp", "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	}, outcome{
		what: "conmon, the engine's monitor, is killed: the run goes on", status: stromboli.Completed, http: 200,
		spec: func(s *server) stromboli.RunSpec {
			return spec(bash("until [ -e /tmp/go ]; do sleep 0.05; done"), text("didn't notice"))
		},
		during: func(t *testing.T, s *server, id string) {
			box := s.boxOf(t, id)
			strike(t, s.conmonOf(t, box), syscall.SIGKILL)
			if err := os.WriteFile(filepath.Join(s.data, "sb", box, "tmp", "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		check: says("didn't notice"),
	}, outcome{
		what: "the container is paused by others, and goes on later: so does the run", status: stromboli.Completed, http: 200,
		root: true, // needs cgroups
		spec: func(s *server) stromboli.RunSpec {
			return spec(bash("until [ -e /tmp/go ]; do sleep 0.05; done"), text("was away"))
		},
		during: func(t *testing.T, s *server, id string) {
			box := s.boxOf(t, id)
			s.survPodman("pause", "stromboli-"+box)
			if err := os.WriteFile(filepath.Join(s.data, "sb", box, "tmp", "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s.survPodman("unpause", "stromboli-"+box)
		},
		check: says("was away"),
	})
	return rows
}

// queuedServer executes one run at a time, and its engine can be taken away.
func queuedServer(t *testing.T) *server {
	t.Helper()
	s := start(t, "STROMBOLI_RUNS_MAX=1")
	s.survPodman("tag", suite.image, goneImage)
	gate := s.gate(t)
	s.submit(t, gate.spec(text("made room")))
	return s
}

const goneImage = "localhost/stromboli-outcomes:gone"

func queuedOutcomes() []outcome {
	return []outcome{
		{
			what: "cancelled while it waits for a slot", status: stromboli.Cancelled, reason: stromboli.ReasonRequest, http: 409,
			spec: steps(text("never said")), during: cancel,
		},
		{
			what: "its image is removed while it waits for a slot", status: stromboli.Failed, reason: stromboli.ReasonImage, http: 500,
			spec: with(func(in *stromboli.RunSpec) { in.Podman.Image = goneImage }, text("never said")),
			during: func(t *testing.T, s *server, _ string) {
				s.survPodman("untag", suite.image, goneImage)
				gate{filepath.Join(s.volumes, "gate")}.open(t)
			},
		},
	}
}

// oddOutcomes are what the CLI does seldom, or after minutes, or never.
func oddOutcomes() []outcome {
	script := func(s string) func(*server) stromboli.RunSpec {
		return func(*server) stromboli.RunSpec { return stromboli.RunSpec{Prompt: s} }
	}
	// recorded plays one of the CLI's recordings.
	recorded := func(name string) func(*server) stromboli.RunSpec {
		return func(s *server) stromboli.RunSpec {
			b, err := os.ReadFile(filepath.Join("..", "internal", "claude", "testdata", name+".rec"))
			if err != nil {
				s.t.Fatal(err)
			}
			return stromboli.RunSpec{Prompt: fmt.Sprintf("while read -r kind line; do case $kind in O) printf '%%s\\n' \"$line\";; E) printf '%%s\\n' \"$line\" >&2;; X) exit \"$(jq .code <<<\"$line\")\";; esac; done <<'EOT'\n%sEOT\n", b)}
		}
	}
	errorSays := func(part string) func(*testing.T, *server, endedRun) {
		return func(t *testing.T, _ *server, r endedRun) {
			if !strings.Contains(r.Error, part) {
				t.Errorf("error %q doesn't say %q", r.Error, part)
			}
		}
	}
	return []outcome{
		{what: "the CLI isn't logged in", status: stromboli.Failed, reason: stromboli.ReasonAuth, http: 500, spec: recorded("not_logged_in"), check: errorSays("Not logged in")},
		{what: "the CLI doesn't know the session", status: stromboli.Failed, reason: stromboli.ReasonModel, http: 500, spec: recorded("resume_unknown")},
		{
			what: "the CLI doesn't like its command line", status: stromboli.Crashed, reason: stromboli.ReasonExit, http: 200, crash: "1",
			spec: recorded("unknown_option"), check: errorSays("unknown option"),
		},
		{
			what: "the CLI dies at its start, without a word", status: stromboli.Crashed, reason: stromboli.ReasonSignal, http: 200, crash: "SIGABRT, 134",
			spec: script("kill -ABRT $$"),
		},
		{
			what: "no result, and an exit with an error", status: stromboli.Crashed, reason: stromboli.ReasonExit, http: 200, crash: "3",
			spec: script("echo working; echo 'a reason' >&2; exit 3"), check: errorSays("a reason"),
		},
		{
			what: "no result at all, though all seems well", status: stromboli.Crashed, reason: stromboli.ReasonExit, http: 200, crash: "0",
			spec: script("exit 0"),
		},
		{
			what: "a whole result, then an exit with an error (a warning says so)", status: stromboli.Completed, http: 200,
			spec: script(rogueResult + "; exit 9"),
			check: func(t *testing.T, _ *server, r endedRun) {
				if r.Output != "the end" || !r.warned("unclean_exit") {
					t.Errorf("output %q, warnings %v", r.Output, r.Warnings)
				}
			},
		},
		{
			what: "a whole result, and a child that keeps the output open", status: stromboli.Completed, http: 200,
			spec: script("setsid " + stayCommand("rogue-child") + " & " + rogueResult),
			check: func(t *testing.T, _ *server, _ endedRun) {
				if n := processesLike("rogue-child"); n != 0 {
					t.Errorf("%d children are left", n)
				}
			},
		},
		{
			what: "the disk that the agent writes to is full, and ends it", status: stromboli.Failed, reason: stromboli.ReasonDisk, http: 500,
			spec: script("echo 'Error: ENOSPC: no space left on device, write' >&2; exit 1"),
		},
	}
}

// diskOutcomes are those of sandboxes that may take 100 MiB of the disk.
func diskOutcomes() []outcome {
	script := func(s string) func(*server) stromboli.RunSpec {
		return func(*server) stromboli.RunSpec { return stromboli.RunSpec{Prompt: s} }
	}
	const goesOn = "; trap '' TERM; while :; do sleep 1; done"
	over := func(what, take string) outcome {
		return outcome{
			what: what, status: stromboli.Failed, reason: stromboli.ReasonDisk, http: 500, spec: script(take + goesOn),
			check: func(t *testing.T, _ *server, r endedRun) {
				if !strings.Contains(r.Error, "its limit is 100 MiB") || !strings.Contains(r.Error, "STROMBOLI_RESOURCES_DISK") {
					t.Errorf("error %q", r.Error)
				}
			},
		}
	}
	return []outcome{
		over("it takes more of the disk than `STROMBOLI_RESOURCES_DISK`", "dd if=/dev/zero of=/workspace/f bs=1M count=300"),
		over("it does so in small files", `python3 -c 'for i in range(30000): open(f"/tmp/{i}", "w").close()'`),
		over("it does so in a file that it has deleted and keeps open", "exec 5>$HOME/f; rm $HOME/f; dd if=/dev/zero bs=1M count=300 >&5"),
		{
			what: "its files are larger than that, but have holes", status: stromboli.Completed, http: 200,
			spec: script("truncate -s 200M /workspace/f; dd if=/dev/zero of=$HOME/f bs=1M count=50 2>/dev/null; sleep 5; " + rogueResult),
		},
	}
}
