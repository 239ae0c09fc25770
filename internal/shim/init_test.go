package shim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAgentRunsPowerless(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	script := `grep -E '^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status
ulimit -Sn; ulimit -Hn; pwd; cut -d' ' -f 5,6 /proc/$$/stat; echo $$; stat ` + b.run + `/spool 2>&1; ls /proc/1/fd 2>&1
kill -9 1; kill -TERM 1; echo error >&2; read -r line; echo "read $line"; exit 7`
	must(t, s.Start(ctx(t), b.bash(script)))
	must(t, s.Start(ctx(t), b.bash(script))) // again changes nothing
	must(t, s.Stdin(ctx(t), 1, []byte("hello\n")))
	lines, status := s.finish(0)
	checkGapless(t, lines)
	out := text(lines, Stdout)
	soft, hard := ulimits(t)
	for _, want := range []string{
		"Uid:\t1000\t1000\t1000\t1000\n", "Gid:\t1001\t1001\t1001\t1001\n", "Groups:\t \n", "NoNewPrivs:\t1\n",
		"CapInh:\t0000000000000000\n", "CapBnd:\t00000000000000e0\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
		soft + "\n" + hard + "\n" + b.work + "\n", "Permission denied", "read hello\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the agent's output:\n%s", want, out)
		}
	}
	if !strings.Contains(text(lines, Stderr), "error\n") {
		t.Errorf("stderr is %q", text(lines, Stderr))
	}
	if got := text(lines, StdinRecord); got != `{"id":1,"bytes":6}`+"\n" {
		t.Errorf("stdin records: %s", got)
	}
	if want := (ExitStatus{ExitCode: 7}); status != want {
		t.Errorf("exit %+v, want %+v", status, want)
	}
	other := b.bash(script)
	other.ID = "run-2"
	wantCode(t, s.Start(ctx(t), other), CodeConflict)
	must(t, s.Start(ctx(t), b.bash(script)))
	wantCode(t, s.Stdin(ctx(t), 2, []byte("late\n")), CodeStdinClosed)
	must(t, s.CloseStdin(ctx(t)))

	// Told to exit, and only then, it does.
	select {
	case <-b.ended:
		t.Fatal("the shim exited by itself")
	default:
	}
	must(t, s.Exit(ctx(t)))
	<-b.ended
	if b.exitCode != 0 {
		t.Errorf("the shim's exit code is %d", b.exitCode)
	}
	if _, err := s.Next(ctx(t), 1<<40, 1); !errors.Is(err, ErrGone) {
		t.Errorf("next after the exit: %v, want ErrGone", err)
	}
	must(t, s.Exit(ctx(t)))
}

// ulimits are this process's limits of open files, as it was started with
// them: the Go runtime raises the soft one for itself.
func ulimits(t *testing.T) (soft, hard string) {
	t.Helper()
	out := runShell(t, "ulimit -Sn; ulimit -Hn")
	f := strings.Fields(out)
	return f[0], f[1]
}

func TestStartRefusals(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	wantCode(t, s.Stdin(ctx(t), 1, nil), CodeNotStarted)
	wantCode(t, s.CloseStdin(ctx(t)), CodeNotStarted)
	for name, c := range map[string]struct {
		code   string
		change func(*Process)
	}{
		"root":            {CodeInvalid, func(p *Process) { p.UID = 0 }},
		"unchanged uid":   {CodeInvalid, func(p *Process) { p.UID = -1 }},
		"last uid":        {CodeInvalid, func(p *Process) { p.UID = 1<<32 - 1 }},
		"unchanged gid":   {CodeInvalid, func(p *Process) { p.GID = 1<<32 - 1 }},
		"no id":           {CodeInvalid, func(p *Process) { p.ID = "" }},
		"relative path":   {CodeInvalid, func(p *Process) { p.Argv[0] = "bash" }},
		"relative dir":    {CodeInvalid, func(p *Process) { p.Dir = "." }},
		"NUL":             {CodeInvalid, func(p *Process) { p.Env = []string{"A=\x00"} }},
		"missing program": {CodeStart, func(p *Process) { p.Argv[0] = "/no/such" }},
		"missing dir":     {CodeStart, func(p *Process) { p.Dir = "/no/such" }},
		"forbidden dir":   {CodeStart, func(p *Process) { p.Dir = b.run }},
	} {
		t.Run(name, func(t *testing.T) {
			p := b.bash("true")
			c.change(&p)
			wantCode(t, s.Start(ctx(t), p), c.code)
		})
	}
	// None of that used up the one start.
	must(t, s.Start(ctx(t), b.bash("true")))
	if _, status := s.finish(0); status != (ExitStatus{}) {
		t.Errorf("exit %+v", status)
	}
}

// Whatever becomes of servers and connections, at random moments: every line
// arrives once and in order, and every frame reaches stdin once.
func TestNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	for range 3 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			b := newBox(t, func(c *Config) {
				c.LineLimitBytes, c.SpoolLimitBytes = 4096, 256<<10 // full again and again
			})
			const frames, perFrame = 60, 400
			p := b.bash(`while read -r n; do for ((i = 0; i < ` + strconv.Itoa(perFrame) + `; i++)); do echo "$n $i"; done; done`)

			var stored []Line
			var next uint64 = 1
			lives, drops := 0, 0
			s := b.serve(nil)
			must(t, s.Start(ctx(t), p))
			for {
				switch rnd.IntN(8) {
				case 0:
					s.die()
					s = b.serve(nil)
					must(t, s.Start(ctx(t), p))
					lives++
				case 1:
					s.drop()
					drops++
				case 2, 3:
					if next <= frames {
						// Sent and not waited for, or waited for: it counts once.
						c := ctx(t)
						if rnd.IntN(2) == 0 {
							go func(s *server, id uint64) { _ = s.Stdin(c, id, fmt.Appendf(nil, "%d\n", id)) }(s, next)
						}
						must(t, s.Stdin(c, next, fmt.Appendf(nil, "%d\n", next)))
						next++
					} else {
						must(t, s.CloseStdin(ctx(t)))
					}
				}
				if int64(len(stored)) == 0 && next == 1 {
					continue
				}
				if len(stored) >= int(next-1)*(perFrame+1) && next <= frames {
					continue // nothing to wait for
				}
				lines, err := s.Next(ctx(t), int64(len(stored)), 1+rnd.IntN(500))
				must(t, err)
				if rnd.IntN(5) == 0 {
					continue // died before it could store them
				}
				stored = append(stored, lines...)
				if rnd.IntN(3) > 0 {
					s.Ack(int64(len(stored)))
				}
				if lines[len(lines)-1].Stream == Exit {
					break
				}
				if next > frames && rnd.IntN(4) == 0 {
					must(t, s.CloseStdin(ctx(t)))
				}
				if len(stored) == frames*(perFrame+1) {
					must(t, s.CloseStdin(ctx(t)))
				}
			}
			t.Logf("%d servers' deaths, %d cuts, %d lines", lives, drops, len(stored))
			checkGapless(t, stored)
			var want strings.Builder
			for n := 1; n <= frames; n++ {
				for i := range perFrame {
					fmt.Fprintf(&want, "%d %d\n", n, i)
				}
			}
			if text(stored, Stdout) != want.String() {
				t.Error("the agent's output has changed on its way")
			}
		})
	}
}

func TestFullSpoolBlocksTheAgent(t *testing.T) {
	b := newBox(t, func(c *Config) { c.LineLimitBytes, c.SpoolLimitBytes = 1024, 128<<10 })
	s := b.serve(nil)
	const n = 4000
	p := b.bash(`printf -v pad '%0300d' 0; for ((i = 1; i <= ` + strconv.Itoa(n) + `; i++)); do echo "$i $pad"; echo $i >> ` + b.work + `/at; done`)
	must(t, s.Start(ctx(t), p))
	s.die()
	at := func() string {
		v, _ := os.ReadFile(b.work + "/at")
		return strconv.Itoa(strings.Count(string(v), "\n"))
	}
	// The agent has stopped when two looks a while apart show the same.
	last := ""
	eventually(t, "the agent waits", func() bool {
		if !wait(ctx(t), 500*time.Millisecond) {
			return false
		}
		same := last == at() && last != "0"
		last = at()
		return same
	})
	if reached, _ := strconv.Atoi(strings.TrimSpace(last)); reached == 0 || reached >= n/2 {
		t.Errorf("the agent went on to line %d of %d with a full spool", reached, n)
	}
	lines, status := b.serve(nil).finish(0)
	checkGapless(t, lines)
	if len(lines) != n+1 || status != (ExitStatus{}) {
		t.Errorf("%d lines, exit %+v; want %d and a normal exit", len(lines), status, n+1)
	}
}

func TestOverlongLineIsCutAndMarked(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	const long = 50 << 20
	must(t, s.Start(ctx(t), b.bash(`echo before; head -c 52428800 /dev/zero | tr '\0' x; echo; printf 'a\xff\xfe\x00b\n'; printf unfinished`)))
	lines, _ := s.finish(0)
	checkGapless(t, lines)
	if len(lines) != 5 {
		t.Fatalf("%d lines, want 5", len(lines))
	}
	cut := lines[1]
	if len(cut.Data) != maxLine || cut.Dropped != long-maxLine {
		t.Errorf("kept %d, dropped %d", len(cut.Data), cut.Dropped)
	}
	for i, want := range map[int]string{0: "before", 2: "a\xff\xfe\x00b", 3: "unfinished"} {
		if string(lines[i].Data) != want || lines[i].Dropped != 0 {
			t.Errorf("line %d is %q, dropped %d", i+1, lines[i].Data, lines[i].Dropped)
		}
	}
	if raceEnabled {
		return // its shadow memory counts too
	}
	if kb := b.peakMemory(); kb > 80<<10 {
		t.Errorf("the shim's memory reached %d KiB", kb)
	}
}

// peakMemory is VmHWM in KiB.
func (b *box) peakMemory() int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
	must(b.t, err)
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.Fields(v)[0])
			must(b.t, err)
			return kb
		}
	}
	b.t.Fatal("no VmHWM")
	return 0
}

func TestStopFromOutside(t *testing.T) {
	b := newBox(t, nil)
	s := b.serve(nil)
	must(t, s.Start(ctx(t), b.bash(`echo up; sleep 1000`)))
	if _, err := s.Next(ctx(t), 0, 1); err != nil {
		t.Fatal(err)
	}
	must(t, b.cmd.Process.Signal(os.Signal(sigterm)))
	if _, status := s.finish(0); status.Signal != "SIGTERM" || status.Cause != "" {
		t.Errorf("exit %+v", status)
	}
}
