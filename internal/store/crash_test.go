package store_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

const crashEnv = "STROMBOLI_TEST_CRASH_DB"

// crashChild is the process that the crash test kills: it takes runs over or
// makes them, appends to each from a goroutine of its own, and says on stdout
// what was committed. It reports false in an ordinary test process.
func crashChild() bool {
	path := os.Getenv(crashEnv)
	if path == "" {
		return false
	}
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Path: path})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	runs, err := s.ActiveRuns(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := len(runs); i < 4; i++ {
		run, _, err := s.CreateRun(ctx, runningRun())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		runs = append(runs, run)
	}
	say("ready")
	var wg sync.WaitGroup
	for _, run := range runs {
		wg.Go(func() {
			epoch, err := s.Takeover(ctx, run.ID, "child")
			for n := run.LastLine; err == nil; {
				n++
				data := fmt.Sprintf(`"%d%s"`, n, strings.Repeat("x", int(n%3)*5000))
				var evs []stromboli.Event
				evs, err = s.AppendEvents(ctx, run.ID, epoch, []stromboli.Event{
					{Type: stromboli.EventOutput, Line: n, Data: []byte(data)}, {Type: "second", Line: n, Index: 1},
				})
				for _, ev := range evs {
					say("%s %d %d", run.ID, ev.Seq, n)
				}
			}
			fmt.Fprintln(os.Stderr, err)
		})
	}
	wg.Wait()
	os.Exit(1)
	return true
}

// TestKill kills a writing process at random moments; whatever it said is
// stored must be there afterwards, whole and once.
func TestKill(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	path := filepath.Join(t.TempDir(), "stromboli.db")
	acked := map[string]int64{} // run → newest sequence
	kills := 8
	if testing.Short() {
		kills = 2
	}
	for range kills {
		writeUntilKilled(t, path, time.Duration(20+rnd.IntN(150))*time.Millisecond, acked)
		verify(t, path, acked)
	}
	total := int64(0)
	for _, n := range acked {
		total += n
	}
	if len(acked) == 0 {
		t.Fatal("nothing was written")
	}
	t.Logf("%d kills, %d runs, %d events acknowledged", kills, len(acked), total)
}

func writeUntilKilled(t *testing.T, path string, after time.Duration, acked map[string]int64) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer func() { timer.Stop() }()
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if sc.Text() == "ready" {
			timer.Stop()
			timer = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			continue
		}
		var run string
		var seq, line int64
		if n, _ := fmt.Sscan(sc.Text(), &run, &seq, &line); n == 3 { // the last line may be cut
			acked[run] = max(acked[run], seq)
		}
	}
	_ = cmd.Wait() // killed
}

func verify(t *testing.T, path string, acked map[string]int64) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for run, want := range acked {
		var pos, line int64
		for {
			evs, err := s.Events(t.Context(), run, pos, 500)
			if err != nil {
				t.Fatal(err)
			}
			if len(evs) == 0 {
				break
			}
			for _, ev := range evs {
				pos++
				if ev.Seq != pos {
					t.Fatalf("%s: sequence %d at position %d", run, ev.Seq, pos)
				}
				if ev.Line == 0 {
					continue
				}
				if ev.Index == 0 {
					line++
				}
				if ev.Line != line {
					t.Fatalf("%s: line %d, want %d: a line is missing or there twice", run, ev.Line, line)
				}
			}
		}
		if pos < want {
			t.Errorf("%s: %d was acknowledged, %d is stored", run, want, pos)
		}
		if (pos-1)%2 != 0 {
			t.Errorf("%s: half a line is stored", run)
		}
	}
}
