package audit_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
)

const writerVar = "AUDIT_TEST_WRITER"

// writeUntilKilled is the process that gets killed: it tells each record's number
// once it is durable.
func writeUntilKilled(path string) int {
	l, err := audit.Open(context.Background(), audit.Config{Path: path, MaxSize: 50_000})
	if err != nil {
		_, _ = fmt.Fprintln(os.Stdout, "open:", err)
		return 1
	}
	var mu sync.Mutex
	for i := range 8 {
		go func() {
			for {
				r := stromboli.AuditRecord{Action: "test.act", Object: strconv.Itoa(i), Tenant: "default"}
				seq, err := l.Begin(context.Background(), r)
				if err == nil {
					err = l.End(context.Background(), seq, r)
				}
				mu.Lock()
				_, _ = fmt.Fprintln(os.Stdout, seq)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		}()
	}
	select {}
}

// However a writer dies, what it had told of is there, the chain is whole, and the next
// one goes on.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var told uint64
	for range 6 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), writerVar+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		n, most := 0, 1+rand.IntN(200)
		for n < most && lines.Scan() {
			seq, err := strconv.ParseUint(lines.Text(), 10, 64)
			if err != nil {
				t.Fatal(lines.Text())
			}
			told = max(told, seq)
			n++
		}
		select { // somewhere within a write
		case <-time.After(time.Duration(rand.IntN(2000)) * time.Microsecond):
		case <-t.Context().Done():
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if seq, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
				told = max(told, seq)
			}
		}
		_ = cmd.Wait()
		if r := whole(t, path); r.Last.Seq < told {
			t.Fatalf("record %d was told of, and the log ends with %d", told, r.Last.Seq)
		}
	}
	l := open(t, audit.Config{Path: path})
	add(t, l, 1)
	shut(t, l)
	r := whole(t, path)
	t.Logf("%d records in %d files, %d intents without outcome", r.Records, r.Files, r.Open)
}
