package e2e_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite" // another program's way to the database

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// TestFrozen: a server that was stopped in mid-work keeps its connections, but
// it is not there: its agents end as orphans, and it hears of that when it goes
// on. A shim that was stopped can't end its agent in time; the server does it.
func TestFrozen(t *testing.T) {
	t.Parallel()
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		s := start(t, "STROMBOLI_ORPHAN_TIMEOUT=1s")
		id := s.submit(t, spec(bash(stayCommand("frozen-server")), text("never said")))
		s.inTool(t, id)
		waitFor(t, "the tool to work", func() bool { return processesLike("frozen-server") > 0 })
		strike(t, s.cmd.Process.Pid, syscall.SIGSTOP)
		waitFor(t, "the agent's end without a server", func() bool { return processesLike("frozen-server") == 0 })
		strike(t, s.cmd.Process.Pid, syscall.SIGCONT)
		r := s.await(t, id)
		r.want(t, stromboli.Failed, stromboli.ReasonOrphaned)
		s.do(t, inSession(r.SessionID, spec(text("goes on")))).want(t, stromboli.Completed, "")
		waitFor(t, "nothing to be left", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
	})
	t.Run("shim", func(t *testing.T) {
		t.Parallel()
		s := start(t)
		in := spec(bash(stayCommand("frozen-shim")), text("never said"))
		in.Claude.Timeout = stromboli.Duration(20 * time.Second)
		id := s.submit(t, in)
		gone := s.submit(t, spec(bash(stayCommand("frozen-shim")), text("never said")))
		for _, id := range []string{id, gone} {
			pid, _ := s.survContainer(s.boxOf(t, id))
			strike(t, pid, syscall.SIGSTOP)
		}
		cancel(t, s, gone) // is answered, though nobody carries it out
		s.await(t, gone).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
		s.await(t, id).want(t, stromboli.Failed, stromboli.ReasonTimeout)
		waitFor(t, "nothing to be left", func() bool {
			return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 && processesLike("frozen-shim") == 0
		})
	})
}

// TestDatabaseLocked: while another program holds the database, runs wait, new
// ones are refused, and nothing is lost.
func TestDatabaseLocked(t *testing.T) {
	t.Parallel()
	const lines = 100
	s := rogue(t)
	gate := s.gate(t)
	id := s.submit(t, gate.mounted(stromboli.RunSpec{Prompt: numbered(lines)}))
	s.waitPhase(id, stromboli.PhaseGenerating)
	db, err := sql.Open("sqlite", filepath.Join(s.data, "stromboli.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	lock, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	waitFor(t, "the lock", func() bool {
		_, err := lock.ExecContext(t.Context(), "BEGIN IMMEDIATE")
		return err == nil
	})
	gate.open(t)
	waitFor(t, "the server to notice", func() bool { return strings.Contains(s.log.tail(1<<20), "can't store now") })
	a := s.send(t, "POST", "/run/async", `{"prompt":"exit 0"}`)
	a.refused(t, 503, "storage_busy", "")
	if a.header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if j, err := s.c.Job(s.ctx(), id); err != nil || j.Status != stromboli.Running {
		t.Errorf("the run is %s %s, %v", j.Status, j.Reason, err)
	}
	if _, err := lock.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	s.await(t, id).whole(t, lines)
	waitFor(t, "nothing to be left", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
}

// TestDiskFullAnywhere: with a little more space each time, the disk gets full
// at one write after the other on a run's way. The run is refused, or fails and
// says so, or waits; no event that was stored is lost, and nothing stays.
func TestDiskFullAnywhere(t *testing.T) {
	if suite.rootless {
		t.Skip("mounting a small disk needs root")
	}
	s := prepareRogue(t)
	s.env = append(s.env, "STROMBOLI_DISK_RESERVE=0") // it would keep runs from what is looked for here
	s.smallDisk(t, "48m")
	s.up()
	s.do(t, stromboli.RunSpec{Prompt: rogueResult}).want(t, stromboli.Completed, "")
	met := map[string]int{}
	for _, pages := range []int64{0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 80} {
		filler := filepath.Join(s.data, "filler")
		fill(t, filler)
		info, err := os.Stat(filler)
		if err == nil {
			err = os.Truncate(filler, info.Size()-pages*4096)
		}
		if err != nil {
			t.Fatal(err)
		}
		noted := len(s.log.tail(1 << 30))
		a := s.send(t, "POST", "/run/async", specJSON(t, stromboli.RunSpec{Prompt: "for i in {1..40}; do echo {1..400}; done; " + rogueResult}))
		if a.status != http.StatusAccepted {
			a.refused(t, 503, "storage_full", "")
			met["refused"]++
		}
		var before []stromboli.Event
		id := ""
		if a.status == http.StatusAccepted {
			id = fmt.Sprint(a.object(t)["job_id"])
			waitFor(t, "the run to end or to wait", func() bool {
				j, err := s.c.Job(s.ctx(), id)
				return err == nil && (j.Status.Terminal() || strings.Contains(s.log.tail(1 << 30)[noted:], "can't store now"))
			})
			var page struct{ Events []stromboli.Event }
			if err := json.Unmarshal(s.send(t, "GET", "/jobs/"+id+"/events?limit=1000", "").want(t, 200).body, &page); err != nil {
				t.Fatal(err)
			}
			before = page.Events
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if id == "" {
			continue
		}
		r := s.await(t, id)
		met[string(r.Status)+" "+string(r.Reason)]++
		if r.Status != stromboli.Completed && (r.Status != stromboli.Failed || r.Reason != stromboli.ReasonDisk) {
			t.Errorf("with %d pages: %s %s %q", pages, r.Status, r.Reason, r.Error)
		}
		for i, e := range before {
			if r.events[i].Type != e.Type || string(r.events[i].Data) != string(e.Data) {
				t.Errorf("with %d pages: event %d was %s %s and is %s %s", pages, e.Seq, e.Type, e.Data, r.events[i].Type, r.events[i].Data)
			}
		}
		if r.Status == stromboli.Completed && r.count(stromboli.EventOutput) != 41 {
			t.Errorf("with %d pages: %d lines", pages, r.count(stromboli.EventOutput))
		}
		s.do(t, inSession(r.SessionID, stromboli.RunSpec{Prompt: rogueResult})).want(t, stromboli.Completed, "")
	}
	t.Logf("met: %v", met)
	if met["failed disk"] == 0 || met["completed "] == 0 {
		t.Errorf("the sizes are not those that matter: %v", met)
	}
	waitFor(t, "nothing to be left", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
}

// smallDisk mounts a disk of that size as the data directory.
func (s *server) smallDisk(t *testing.T, size string) {
	t.Helper()
	if err := os.Mkdir(s.data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", s.data, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		t.Skip("no small disk can be mounted here:", err)
	}
	t.Cleanup(func() { // before the server's directory is removed
		s.stop()
		s.shutdownEgress()
		if err := syscall.Unmount(s.data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestThousandOrphans: a server that finds a thousand containers of the one
// before answers soon, goes on with its run, and removes what belongs to none.
func TestThousandOrphans(t *testing.T) {
	t.Parallel()
	const all, running = 1000, 50
	s := start(t)
	run := s.submit(t, spec(bash("until [ -e /tmp/go ]; do sleep 0.05; done"), text("went on")))
	box := s.boxOf(t, run)
	s.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var made sync.WaitGroup
	slots, failed := make(chan struct{}, 6), make(chan error, all)
	for i := range all {
		slots <- struct{}{}
		made.Go(func() {
			defer func() { <-slots }()
			id := stromboli.NewSandboxID()
			c, err := suite.engine.Create(ctx, engine.ContainerSpec{
				Name: "stromboli-" + id, Image: suite.image, Command: []string{"sleep", "600"}, User: "0:0", Network: engine.NetworkNone,
				Labels: map[string]string{"stromboli.instance": s.survInstance(), "stromboli.sandbox": id, "stromboli.run": stromboli.NewRunID(time.Now())},
			})
			if err == nil && i < running {
				err = suite.engine.Start(ctx, c.ID)
			}
			failed <- err
		})
	}
	made.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	s.up()
	up := time.Since(began)
	if err := os.WriteFile(filepath.Join(s.data, "sb", box, "tmp", "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	r := s.await(t, run)
	r.want(t, stromboli.Completed, "")
	went := time.Since(began)
	s.do(t, spec(text("new"))).want(t, stromboli.Completed, "")
	fresh := time.Since(began)
	for end := time.Now().Add(4 * time.Minute); len(s.survContainers()) > 0; <-time.After(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d containers are left", len(s.survContainers()))
		}
	}
	t.Logf("the server answers after %s, its run has ended after %s, a new one after %s, all is gone after %s",
		up.Round(time.Millisecond), went.Round(time.Millisecond), fresh.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if up > 20*time.Second {
		t.Errorf("the server answered after %s", up)
	}
	waitFor(t, "the directories to be gone", func() bool { return len(s.sandboxes()) == 0 })
}

// TestUpgrade: a server of this build goes on with the sandbox of the release
// before, whose shim speaks its own version of the protocol.
func TestUpgrade(t *testing.T) {
	tag := os.Getenv("STROMBOLI_TEST_RELEASE")
	if tag == "" {
		out, err := exec.CommandContext(t.Context(), "git", "describe", "--tags", "--abbrev=0", "--match=v*", "HEAD^").Output()
		if tag = strings.TrimSpace(string(out)); err != nil || tag == "" {
			t.Skip("there is no release yet; internal/shim tests the oldest protocol version")
		}
	}
	src := filepath.Join(t.TempDir(), "src")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, args := range [][]string{{"git", "worktree", "add", "--detach", src, tag}, {"make", "-C", src, "build"}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("git", "worktree", "remove", "--force", src).Run() })
	s := prepare(t)
	s.bin = filepath.Join(src, "bin", "stromboli")
	s.up()
	goes := s.submit(t, spec(bash("until [ -e /tmp/go ]; do sleep 0.05; done"), text("went on")))
	ends := s.submit(t, spec(bash(stayCommand("upgrade")), text("never said")))
	box := s.boxOf(t, goes)
	s.inTool(t, ends)
	s.stop()
	s.bin = suite.bin
	s.up()
	cancelled := s.c.Cancel(s.ctx(), ends)
	if err := os.WriteFile(filepath.Join(s.data, "sb", box, "tmp", "go"), nil, 0o644); err != nil || cancelled != nil {
		t.Fatal(errors.Join(err, cancelled))
	}
	r := s.await(t, goes)
	r.want(t, stromboli.Completed, "")
	if r.Output != "went on" {
		t.Errorf("the output is %q", r.Output)
	}
	s.await(t, ends).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
	s.do(t, inSession(r.SessionID, spec(text("and on")))).want(t, stromboli.Completed, "")
	waitFor(t, "nothing to be left", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
}
