package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// numbered is a script that prints n numbered lines of 64 KiB once the gate is
// open, says in /gate/progress how far it came, and answers.
func numbered(n int) string {
	return fmt.Sprintf(`until [ -e /gate/open ]; do sleep 0.05; done
python3 -c '
import os, sys
for i in range(%d):
    sys.stdout.write("%%08d" %% i + "x" * 65528 + "\n")
    sys.stdout.flush()
    with open("/gate/progress.new", "w") as f: f.write(str(i + 1))
    os.rename("/gate/progress.new", "/gate/progress")
'
%s`, n, rogueResult)
}

// progress is how many lines the agent has got rid of.
func (g gate) progress() int {
	b, err := os.ReadFile(filepath.Join(g.path, "progress"))
	n := 0
	if err == nil {
		_, _ = fmt.Sscan(string(b), &n)
	}
	return n
}

// whole checks that each numbered line was stored once, uncut and in order.
func (r endedRun) whole(t *testing.T, n int) {
	t.Helper()
	r.want(t, stromboli.Completed, "")
	next := 0
	for _, e := range r.events {
		var d stromboli.OutputData
		if e.Type == stromboli.EventCut {
			t.Fatalf("a line was cut: %s", e.Data)
		}
		if e.Type != stromboli.EventOutput || json.Unmarshal(e.Data, &d) != nil || !strings.HasSuffix(d.Line, "xxx") {
			continue
		}
		if len(d.Line) != 65536 || !strings.HasPrefix(d.Line, fmt.Sprintf("%08d", next)) {
			t.Fatalf("line %d has %d bytes and begins %.20q", next, len(d.Line), d.Line)
		}
		next++
	}
	if next != n {
		t.Errorf("%d of %d lines", next, n)
	}
}

// TestSpoolFull: while the server doesn't listen, the agent's output is kept in
// the sandbox up to 64 MiB; then the agent waits, and nothing is dropped.
func TestSpoolFull(t *testing.T) {
	const lines = 1100 // 69 MiB
	s := rogue(t)
	gate := s.gate(t)
	id := s.submit(t, gate.mounted(stromboli.RunSpec{Prompt: numbered(lines)}))
	s.waitPhase(id, stromboli.PhaseGenerating)
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	gate.open(t)
	last, since := 0, time.Now()
	waitFor(t, "the agent to wait", func() bool {
		if n := gate.progress(); n != last {
			last, since = n, time.Now()
		}
		return last<<16 > 60<<20 && time.Since(since) > time.Second
	})
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// The pipe and the reader hold a little on top.
	if bytes := last << 16; bytes > 66<<20 {
		t.Errorf("the agent waited after %d lines, %d MiB", last, bytes>>20)
	}
	s.await(t, id).whole(t, lines)
}

// TestDiskFull: when the server's disk is full, runs wait and nothing is lost;
// they go on when there is space again.
func TestDiskFull(t *testing.T) {
	if suite.rootless {
		t.Skip("mounting a small disk needs root")
	}
	const lines = 300 // 19 MiB
	s := prepareRogue(t)
	s.smallDisk(t, "128m")
	s.up()
	gate := s.gate(t)
	id := s.submit(t, gate.mounted(stromboli.RunSpec{Prompt: numbered(lines)}))
	s.waitPhase(id, stromboli.PhaseGenerating)

	filler := filepath.Join(s.data, "filler")
	fill(t, filler)
	gate.open(t)
	waitFor(t, "the server to notice", func() bool { return strings.Contains(s.log.tail(1<<20), "can't store now") })
	a := s.send(t, "POST", "/run/async", `{"prompt":"exit 0"}`)
	a.refused(t, 503, "storage_full", "")
	if a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if j, err := s.c.Job(s.ctx(), id); err != nil || j.Status != stromboli.Running {
		t.Errorf("the run is %s %s, %v", j.Status, j.Reason, err)
	}
	s.send(t, "GET", "/livez", "").want(t, 200)
	waitFor(t, "/health to say so", func() bool { return strings.Contains(s.fault(t, "disk"), "free at") })

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.await(t, id).whole(t, lines)
	if o := s.send(t, "GET", "/jobs?kind=all", "").object(t); len(o["jobs"].([]any)) != 1 { //nolint:forcetypeassert // the test's failure either way
		t.Errorf("the refused request left a run: %v", o)
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestReserve: a server that has less free space than its reserve says so and
// starts nothing; one that has it does.
func TestReserve(t *testing.T) {
	t.Parallel()
	s := prepareRogue(t, "STROMBOLI_DISK_RESERVE=1000t")
	s.up()
	a := s.send(t, "POST", "/run/async", `{"prompt":"exit 0"}`)
	a.refused(t, 503, "storage_full", "")
	if a.header.Get("Retry-After") != "30" || !strings.Contains(string(a.body), "STROMBOLI_DISK_RESERVE") {
		t.Errorf("%v %s", a.header, a.body)
	}
	waitFor(t, "/readyz to say so", func() bool {
		a := s.send(t, "GET", "/readyz", "")
		return a.status == 503 && strings.Contains(string(a.body), "less than the reserve")
	})
	s.stop()
	s.env = append(s.env, "STROMBOLI_DISK_RESERVE=0")
	s.up()
	waitFor(t, "the server to be ready", func() bool { return s.send(t, "GET", "/readyz", "").status == 200 }) // egress starts anew
	s.do(t, stromboli.RunSpec{Prompt: rogueResult}).want(t, stromboli.Completed, "")
}
