package runner_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// The server dies at each of its writes, before it and right after it. The
// next one brings the run to the same end, with one start of the agent.
func TestDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const script = `say one; say two; sleep 0.05; say three; result hello`
	for at, more := 1, true; more; at++ {
		for _, before := range []bool{true, false} {
			var id string
			id, more = w.dies(at, before, script)
			l := w.start(options{})
			run := l.wait(id)
			want(t, run, stromboli.Completed, "")
			if n := w.starts(run); n != 1 || run.Outcome.Output != "hello" {
				t.Errorf("write %d, before %v: %d starts, output %q", at, before, n, run.Outcome.Output)
			}
			// An attempt that began anew has a sandbox of its own, with its own records.
			if hosts := strings.Join(l.recorded(id), " "); !strings.HasSuffix(hosts, "first last") || strings.Count(hosts, "last") != 1 {
				t.Errorf("write %d, before %v: records %q", at, before, hosts)
			}
			var lines []string
			events, err := l.store.Events(t.Context(), id, 0, 1000)
			must(t, err)
			for _, ev := range events {
				for _, word := range []string{"one", "two", "three"} {
					if ev.Type == stromboli.EventOutput && strings.Contains(string(ev.Data), word) {
						lines = append(lines, word)
					}
				}
			}
			if got := strings.Join(lines, " "); got != "one two three" {
				t.Errorf("write %d, before %v: lines %q", at, before, got)
			}
			l.empty()
			l.stop()
		}
		if at > 30 {
			t.Fatal("a run has no end of writes")
		}
	}
}

// A write that fails once, for no reason that anybody knows, is made good by
// the same server.
func TestWriteFailsOnce(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"append", "finish"} {
		for _, err := range []error{errInjected, stromboli.Errorf(stromboli.StorageFull, "full")} {
			t.Run(fmt.Sprintf("%s %v", op, err), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				var once atomic.Bool
				l := w.start(options{faults: &faults{fail: func(o string) error {
					if o == op && once.CompareAndSwap(false, true) {
						return err
					}
					return nil
				}}})
				defer l.stop()
				run := l.wait(l.submit(`say one; sleep 0.1; say two; result hello`).ID)
				want(t, run, stromboli.Completed, "")
				if w.starts(run) != 1 || !once.Load() {
					t.Errorf("%d starts", w.starts(run))
				}
				l.empty()
			})
		}
	}
}

func TestServerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 2, orphan: 3 * time.Second})
	goes := l.submit(`say before; sleep 1; say after; result fine`)
	l.said(goes.ID, "before")
	late := l.submit(`say here; sleep 60`, timeout(time.Second))
	l.said(late.ID, "here")
	pending := l.submit(`result later`)
	l.stop()
	time.Sleep(1500 * time.Millisecond) //nolint:forbidigo // the server is away, there is nothing to wait for

	l = w.start(options{max: 2, orphan: time.Second})
	want(t, l.wait(goes.ID), stromboli.Completed, "")
	want(t, l.wait(late.ID), stromboli.Failed, stromboli.ReasonTimeout)
	want(t, l.wait(pending.ID), stromboli.Completed, "")
	orphan := l.submit(`say here; sleep 60`)
	l.said(orphan.ID, "here")
	cancelled := l.submit(`trap "" TERM; say here; while :; do sleep 1; done`)
	l.said(cancelled.ID, "here")
	l.cancel(cancelled.ID)
	l.stop()
	time.Sleep(2 * time.Second) //nolint:forbidigo // as above

	l = w.start(options{})
	want(t, l.wait(orphan.ID), stromboli.Failed, stromboli.ReasonOrphaned)
	want(t, l.wait(cancelled.ID), stromboli.Cancelled, stromboli.ReasonRequest)
	l.empty()
}

func TestSandboxGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`say here; sleep 60`)
	l.said(run.ID, "here")
	w.shims.signal(l.get(run.ID).SandboxID, syscall.SIGKILL)
	want(t, l.wait(run.ID), stromboli.Crashed, stromboli.ReasonLost)

	// While no server is there; its directory may be gone too.
	run = l.submit(`say here; sleep 60`)
	l.said(run.ID, "here")
	l.stop()
	must(t, w.engine.Remove(t.Context(), "stromboli-"+l.row(run.ID).SandboxID))
	l = w.start(options{})
	run = l.wait(run.ID)
	want(t, run, stromboli.Crashed, stromboli.ReasonLost)
	session, err := l.store.GetSession(t.Context(), "default", run.SessionID)
	must(t, err)
	if session.TranscriptVersion != 0 && session.TranscriptKey == "" {
		t.Errorf("session %+v", session)
	}
	l.empty()
}

// row reads a run after the server's end.
func (l *life) row(id string) stromboli.Run {
	l.w.t.Helper()
	next := l.w.reopen()
	defer func() { _ = next.Close() }()
	run, err := next.GetRun(context.Background(), "default", id)
	must(l.w.t, err)
	return run
}

// Somebody starts a sandbox's container again while no server is there: the
// agent must not begin anew.
func TestContainerRestarted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`say here; sleep 60`)
	l.said(run.ID, "here")
	l.stop()
	name := "stromboli-" + l.row(run.ID).SandboxID
	must(t, w.engine.Kill(t.Context(), name, "KILL"))
	_, err := w.engine.Wait(t.Context(), name)
	must(t, err)
	must(t, w.engine.Start(t.Context(), name))
	l = w.start(options{})
	run = l.wait(run.ID)
	want(t, run, stromboli.Crashed, stromboli.ReasonLost)
	if w.starts(run) != 1 {
		t.Errorf("%d starts", w.starts(run))
	}
	l.empty()
}

// An engine that is away for a while costs no run.
func TestEngineAwayAtRecovery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`say here; sleep 1; result fine`)
	l.said(run.ID, "here")
	l.stop()
	w.breakEngine("Inspect")
	l = w.start(options{})
	l.eventually("somebody asked", func() bool { return l.get(run.ID).Epoch > 1 })
	time.Sleep(500 * time.Millisecond) //nolint:forbidigo // some vain tries
	w.mendEngine()
	want(t, l.wait(run.ID), stromboli.Completed, "")
	l.empty()
}

// A server that starts while the disk is full waits with its runs, whose agents
// go on, and takes them over when there is space.
func TestDiskFullAtRecovery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`say here; sleep 1; result fine`)
	l.said(run.ID, "here")
	l.stop()
	var tries atomic.Int64
	l = w.start(options{faults: &faults{fail: func(op string) error {
		if op == "takeover" && tries.Add(1) <= 3 {
			return stromboli.Errorf(stromboli.StorageFull, "full")
		}
		return nil
	}}})
	want(t, l.wait(run.ID), stromboli.Completed, "")
	if tries.Load() != 4 || w.starts(l.get(run.ID)) != 1 {
		t.Errorf("%d tries, %d starts", tries.Load(), w.starts(l.get(run.ID)))
	}
	l.empty()
}

// A sandbox that answers no more is removed a while after the run's deadline,
// or after its cancel.
func TestFrozenSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	late := l.submit(`say here; sleep 600`, timeout(time.Second))
	cancelled := l.submit(`say here; sleep 600`)
	for _, run := range []stromboli.Run{late, cancelled} {
		l.said(run.ID, "here")
		w.shims.signal(l.get(run.ID).SandboxID, syscall.SIGSTOP)
	}
	l.cancel(cancelled.ID)
	want(t, l.wait(late.ID), stromboli.Failed, stromboli.ReasonTimeout)
	want(t, l.wait(cancelled.ID), stromboli.Cancelled, stromboli.ReasonRequest)
	l.empty()
}

// A sandbox that can't be removed at its run's end is removed later, and holds
// no slot meanwhile.
func TestDiscardIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	l.wait(l.submit(`result warm`).ID)
	l.empty()
	w.breakEngine("Remove")
	l.wait(l.submit(`result x`).ID)
	want(t, l.wait(l.submit(`result y`).ID), stromboli.Completed, "")
	w.mendEngine()
	l.empty()
}

// The kernel may choose the shim when the sandbox's memory is used up.
func TestShimOutOfMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{oom: true})
	run := l.submit(`say here; sleep 60`)
	l.said(run.ID, "here")
	w.shims.signal(l.get(run.ID).SandboxID, syscall.SIGKILL)
	run = l.wait(run.ID)
	want(t, run, stromboli.Crashed, stromboli.ReasonOOM)
	if c := run.Outcome.CrashInfo; c == nil || c.ExitCode != -1 || !strings.Contains(c.Reason, "memory") {
		t.Errorf("crash_info is %+v", c)
	}
	l.empty()
}
