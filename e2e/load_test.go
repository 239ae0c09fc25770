package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // reads the server's database from outside

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

const loadSlots = 8

// TestLoad puts much more upon a server than it has room for, twice.
func TestLoad(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX="+strconv.Itoa(loadSlots), "STROMBOLI_RESOURCES_MEMORY=400m", "STROMBOLI_LOG_LEVEL=warn")
	if _, err := s.c.Run(s.ctx(), spec(text("warm"))); err != nil {
		t.Fatal(err)
	}
	s.loadGone(t)
	t.Run("100 at once", func(t *testing.T) { hundredRuns(t, s) })
	t.Run("50 cancelled", func(t *testing.T) { fiftyCancelled(t, s) })
}

// hundredRuns: all complete, in the order in which they were submitted, never
// more than there are slots and never fewer while some wait, and the server
// takes no more memory or descriptors for it than it needs.
func hundredRuns(t *testing.T, s *server) {
	const runs = 100
	files := loadFiles(t, s.cmd.Process.Pid)
	m := watchMemory(t, s)
	begin := time.Now()
	ids := make([]string, runs)
	for i := range ids {
		sub, err := s.c.RunAsync(s.ctx(), keyed(fmt.Sprintf("load-%d", i), text(fmt.Sprintf("answer %d", i))))
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = sub.JobID
	}
	submitted := time.Since(begin)

	// The queue is watched from outside, as an operator would.
	var slowest time.Duration
	for pending, deadline := runs, time.Now().Add(8*time.Minute); pending > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d runs have not ended", pending)
		}
		asked := time.Now()
		page, err := s.c.Jobs(s.ctx(), client.Filter{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(asked))
		running, waiting := 0, 0
		for _, j := range page.Jobs {
			switch j.Status {
			case stromboli.Running:
				running++
			case stromboli.Pending:
				waiting++
			default:
			}
		}
		if running > loadSlots {
			t.Errorf("%d runs are active", running)
		}
		pending = running + waiting
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
			t.FailNow()
		}
	}
	took := time.Since(begin)
	peak := m.stop()

	jobs, begun := make([]client.Job, runs), make([]time.Time, runs)
	for i, id := range ids {
		var err error
		if jobs[i], err = s.c.Job(s.ctx(), id); err != nil {
			t.Fatal(err)
		}
		if j := jobs[i]; j.Status != stromboli.Completed || j.Output != fmt.Sprintf("answer %d", i) {
			t.Errorf("run %d: %s %s %q, output %q", i, j.Status, j.Reason, j.Error, j.Output)
		}
		for _, e := range s.events(id) {
			if e.Type == stromboli.EventRunStarted {
				begun[i] = e.At
			}
		}
		if len(s.stub.Requests(fmt.Sprintf("load-%d", i))) == 0 {
			t.Errorf("run %d didn't ask the model", i)
		}
	}
	// Slots are given strictly in order. Two sandboxes are made at a time, by
	// executions that are on their way side by side, so that a start may
	// overtake those right beside it and no other.
	overtaken := 0
	for i := 1; i < runs; i++ {
		if jobs[i].StartedAt.Before(jobs[i-1].StartedAt) {
			t.Errorf("run %d got its slot at %s, run %d at %s", i, jobs[i].StartedAt, i-1, jobs[i-1].StartedAt)
		}
		if begun[i].Before(begun[i-1]) {
			overtaken++
		}
		if beside := loadSlots / 2; i >= beside && begun[i].Before(begun[i-beside]) {
			t.Errorf("run %d started at %s, run %d only at %s", i, begun[i], i-beside, begun[i-beside])
		}
	}
	s.loadGone(t)
	t.Logf("%d runs: submitted in %s, done after %s; %d neighbours changed places; slowest list %s; server and egress %.1f MiB before, %.1f at most",
		runs, submitted.Round(time.Millisecond), took.Round(100*time.Millisecond), overtaken, slowest.Round(time.Millisecond), m.before, peak)
	if peak > m.before+48 {
		t.Errorf("server and egress grew from %.1f to %.1f MiB", m.before, peak)
	}
	waitFor(t, "the server's descriptors to be closed", func() bool { return loadFiles(t, s.cmd.Process.Pid) <= files+10 })
}

// fiftyCancelled: runs are cancelled wherever they are; the callers are told at
// once, and nothing of any of them stays.
func fiftyCancelled(t *testing.T, s *server) {
	phases := []stromboli.Phase{stromboli.PhaseQueued, stromboli.PhaseCreating, stromboli.PhaseStarting, stromboli.PhaseGenerating, "answering"}
	type victim struct {
		id, session string
		at          stromboli.Phase
	}
	victims := make([]victim, 50)
	for i := range victims {
		// Some hang before the first byte, some in mid-answer, some in a tool.
		steps := []modelstub.Step{{Hang: "before"}}
		switch i % 3 {
		case 1:
			steps = []modelstub.Step{survPaced(2 * time.Minute)}
		case 2:
			steps = []modelstub.Step{bash("trap '' TERM INT; sleep 300 & setsid sleep 300 & wait"), text("never")}
		}
		in := keyed("cancel", steps...)
		in.Claude.IncludePartialMessages = true
		sub, err := s.c.RunAsync(s.ctx(), in)
		if err != nil {
			t.Fatal(err)
		}
		victims[i] = victim{sub.JobID, sub.SessionID, phases[i%len(phases)]}
	}
	var all sync.WaitGroup
	for _, v := range victims {
		all.Go(func() {
			if err := loadCancelAt(t, s, v.id, v.at); err != nil {
				t.Errorf("cancelling %s in %s: %v", v.id, v.at, err)
			}
		})
	}
	all.Wait()
	caught := map[stromboli.Phase]int{}
	for _, v := range victims {
		last := stromboli.Phase("")
		for _, e := range s.events(v.id) { // waits for the end
			var d stromboli.PhaseData
			if e.Type == stromboli.EventPhase && json.Unmarshal(e.Data, &d) == nil && d.Phase != stromboli.PhaseCancelling && d.Phase != stromboli.PhaseFinishing {
				last = d.Phase
			}
		}
		caught[last]++
		j, err := s.c.Job(s.ctx(), v.id)
		if err != nil {
			t.Fatal(err)
		}
		if j.Status != stromboli.Cancelled || j.Reason != stromboli.ReasonRequest || j.FinishedAt.IsZero() {
			t.Errorf("%s, cancelled in %s: %s %s %q", v.id, last, j.Status, j.Reason, j.Error)
		}
	}
	t.Logf("cancelled in %v", caught)
	for _, p := range []stromboli.Phase{stromboli.PhaseQueued, stromboli.PhaseCreating, stromboli.PhaseGenerating} {
		if caught[p] < 5 {
			t.Errorf("only %d were cancelled in %s", caught[p], p)
		}
	}
	s.loadGone(t)

	// A session is as good as new, wherever its run was cut off.
	ids := map[stromboli.Phase]string{}
	for i, v := range victims {
		if i >= 45 {
			in := keyed("after", text("goes on"))
			in.Claude.SessionID, in.Claude.Resume = v.session, true
			sub, err := s.c.RunAsync(s.ctx(), in)
			if err != nil {
				t.Fatalf("resuming the session of a run cancelled in %s: %v", v.at, err)
			}
			ids[v.at] = sub.JobID
		}
	}
	for at, id := range ids {
		if r := s.await(t, id); r.Status != stromboli.Completed || r.Output != "goes on" {
			t.Errorf("the run after one that was cancelled in %s: %s %q", at, r.Status, r.Error)
		}
	}
	s.loadGone(t)
}

// loadCancelAt cancels a run when it comes into a phase, or is already beyond.
func loadCancelAt(t *testing.T, s *server, id string, at stromboli.Phase) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for e, err := range s.c.Events(ctx, id, 0) {
		if err != nil {
			return err
		}
		var d stromboli.PhaseData
		inPhase := e.Type == stromboli.EventPhase && json.Unmarshal(e.Data, &d) == nil && d.Phase == at
		speaks := e.Type == stromboli.EventText || e.Type == stromboli.EventOutput && bytes.Contains(e.Data, []byte(`\"type\":\"assistant\"`))
		if inPhase || at == stromboli.PhaseQueued || at == "answering" && (speaks || e.Type == stromboli.EventOutput) {
			break
		}
	}
	return s.c.Cancel(ctx, id)
}

// loadGone waits until nothing of any run is left: no container, directory or
// process, no sandbox of egress's, and no row that says otherwise.
func (s *server) loadGone(t *testing.T) {
	t.Helper()
	waitFor(t, "the sandboxes' directories to be removed", func() bool { return len(s.sandboxes()) == 0 })
	waitFor(t, "the containers to be removed", func() bool { return len(s.survContainers()) == 0 })
	waitFor(t, "egress to forget the sandboxes", func() bool {
		resp, err := s.egressControl().Get("http://egress/status")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var status struct {
			Sandboxes   []string
			Connections int
		}
		if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
			t.Fatal(err)
		}
		return len(status.Sandboxes) == 0 && status.Connections == 0
	})
	// A sandbox's processes are those that see its directory among their
	// mounts; conmon names the container.
	mark := []byte(filepath.Base(s.dir) + "/d/sb/")
	name := []byte("stromboli.instance=" + s.survInstance())
	waitFor(t, "the processes to end", func() bool {
		return survProcess(func(pid int) bool {
			dir := filepath.Join("/proc", strconv.Itoa(pid))
			mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
			cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			return bytes.Contains(mounts, mark) || bytes.Contains(cmd, name)
		}) == 0
	})
	s.loadRows(t)
}

// loadRows reads the database as nobody else does.
func (s *server) loadRows(t *testing.T) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.data, "stromboli.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	for what, query := range map[string]string{
		"sessions that a run holds":      `SELECT count(*) FROM sessions WHERE active_run <> ''`,
		"runs without an end":            `SELECT count(*) FROM runs WHERE status IN ('pending', 'running') OR finished_at IS NULL OR phase <> ''`,
		"runs without an outcome":        `SELECT count(*) FROM runs r WHERE NOT EXISTS (SELECT 1 FROM run_outcomes o WHERE o.run = r.n)`,
		"runs whose last event is wrong": `SELECT count(*) FROM runs r WHERE last_seq <> (SELECT max(seq) FROM events e WHERE e.run = r.n) OR 'run.finished' <> (SELECT type FROM events e WHERE e.run = r.n AND e.seq = r.last_seq)`,
		"events without a run":           `SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.n = e.run)`,
		"cancelled runs without a wish":  `SELECT count(*) FROM runs WHERE status = 'cancelled' AND cancel_reason = ''`,
	} {
		var n int
		if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n != 0 {
			t.Errorf("there are %d %s", n, what)
		}
	}
	rows, err := db.QueryContext(t.Context(), `SELECT transcript_key FROM sessions WHERE transcript_key <> ''`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var want []string
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			t.Fatal(err)
		}
		want = append(want, key)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	var have []string
	blobs := filepath.Join(s.data, "blobs")
	err = filepath.WalkDir(blobs, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(blobs, path)
			have = append(have, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.Errorf("the stored transcripts are\n%s\nand the sessions name\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

// loadFiles counts a process's open files.
func loadFiles(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// memoryWatch samples the proportional set size of server and egress.
type memoryWatch struct {
	before float64
	peak   float64
	end    chan struct{}
	done   chan struct{}
}

func watchMemory(t *testing.T, s *server) *memoryWatch {
	t.Helper()
	pids := []int{s.cmd.Process.Pid, s.egressPID()}
	m := &memoryWatch{before: loadPSS(pids), end: make(chan struct{}), done: make(chan struct{})}
	m.peak = m.before
	go func() {
		defer close(m.done)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-m.end:
				return
			case <-t.Context().Done():
				return
			case <-tick.C:
				m.peak = max(m.peak, loadPSS(pids))
			}
		}
	}()
	return m
}

func (m *memoryWatch) stop() float64 {
	close(m.end)
	<-m.done
	return m.peak
}

// loadPSS is in MiB.
func loadPSS(pids []int) float64 {
	var sum float64
	for _, pid := range pids {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
				kb, _ := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
				sum += kb / 1024
			}
		}
	}
	return sum
}
