package runner_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestDiskLimit: an agent that takes more of the disk than it may is ended,
// wherever it writes to, and its caller is told; one that takes less is not.
func TestDiskLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{disk: 16 << 20})
	write := func(mib, where string) string {
		return "dd if=/dev/zero of=" + where + "/f bs=1M count=" + mib + " 2>/dev/null; "
	}
	well := l.submit(write("8", "$HOME") + "truncate -s 1T $HOME/s; sleep 4; result well")
	var over []stromboli.Run
	for _, script := range []string{write("40", "$HOME"), write("40", "/tmp")} {
		over = append(over, l.submit("trap '' TERM; "+script+"while :; do sleep 1; done"))
	}
	for _, run := range over {
		got := l.wait(run.ID)
		if o := got.Outcome; got.Status != stromboli.Failed || o.Reason != stromboli.ReasonDisk || !strings.Contains(o.Error, "its limit is 16 MiB") {
			t.Errorf("%s %s: %s", got.Status, o.Reason, o.Error)
		}
	}
	if got := l.wait(well.ID); got.Status != stromboli.Completed {
		t.Errorf("%s %s: %s", got.Status, got.Outcome.Reason, got.Outcome.Error)
	}
}

// TestDiskLimitAcrossLives: the order to end the agent is the shim's; a server
// that finds it carried out says the same.
func TestDiskLimitAcrossLives(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.start(options{disk: 16 << 20})
	run := first.submit("trap '' TERM; dd if=/dev/zero of=$HOME/f bs=1M count=40 2>/dev/null; touch $HOME/full; while :; do sleep 1; done")
	first.until(run.ID, stromboli.PhaseGenerating)
	first.stop()
	second := w.start(options{disk: 16 << 20})
	got := second.wait(run.ID)
	if got.Status != stromboli.Failed || got.Outcome.Reason != stromboli.ReasonDisk {
		t.Errorf("%s %s: %s", got.Status, got.Outcome.Reason, got.Outcome.Error)
	}
}

// TestNoRoom: while free space is scarce, new runs are refused, pending ones
// wait, and what runs goes on.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	runs := l.submit("until [ -e $HOME/go ]; do sleep 0.02; done; result went")
	waits := l.submit("result waited")
	l.until(runs.ID, stromboli.PhaseGenerating)
	w.full.Store(true)
	if _, err := l.Submit(context.Background(), me(), submission("result never")); !errors.Is(err, stromboli.StorageFull) {
		t.Errorf("a new run: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(w.sessionPath(runs.SessionID), "home", "go"), nil, 0o644))
	if got := l.wait(runs.ID); got.Status != stromboli.Completed {
		t.Errorf("what runs: %s %s", got.Status, got.Outcome.Error)
	}
	asked := w.asked.Load()
	l.eventually("the slot to be offered", func() bool { return w.asked.Load() > asked })
	if got := l.get(waits.ID); got.Status != stromboli.Pending {
		t.Errorf("what waits: %s", got.Status)
	}
	w.full.Store(false)
	if got := l.wait(l.submit("result again").ID); got.Status != stromboli.Completed {
		t.Errorf("with room again: %s %s", got.Status, got.Outcome.Error)
	}
	if got := l.wait(waits.ID); got.Status != stromboli.Completed || got.Outcome.Output != "waited" {
		t.Errorf("what waited: %s %q", got.Status, got.Outcome.Output)
	}
}

// TestHeld: while no run could start, pending ones wait with a slot free; they
// begin as soon as one can.
func TestHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	runs := l.submit("until [ -e $HOME/go ]; do sleep 0.02; done; result went")
	waits := l.submit("result waited")
	l.until(runs.ID, stromboli.PhaseGenerating)
	w.held.Store(true)
	must(t, os.WriteFile(filepath.Join(w.sessionPath(runs.SessionID), "home", "go"), nil, 0o644))
	if got := l.wait(runs.ID); got.Status != stromboli.Completed {
		t.Errorf("what runs: %s %s", got.Status, got.Outcome.Error)
	}
	asked := w.asked.Load()
	l.Retry()
	l.eventually("the slot to be offered", func() bool { return w.asked.Load() > asked && l.Load().Running == 0 })
	if got := l.get(waits.ID); got.Status != stromboli.Pending {
		t.Errorf("what waits: %s", got.Status)
	}
	w.held.Store(false)
	l.Retry()
	if got := l.wait(waits.ID); got.Status != stromboli.Completed || got.Outcome.Output != "waited" {
		t.Errorf("what waited: %s %q", got.Status, got.Outcome.Output)
	}
}
