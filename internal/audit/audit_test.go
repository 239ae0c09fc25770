package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerVar); path != "" {
		os.Exit(writeUntilKilled(path))
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, cfg audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func shut(t *testing.T, l *audit.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// add appends n records.
func add(t *testing.T, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if _, err := l.Append(t.Context(), stromboli.AuditRecord{Action: "test.add", Object: fmt.Sprint(i), Tenant: "default"}); err != nil {
			t.Fatal(err)
		}
	}
}

// whole verifies and returns the report.
func whole(t *testing.T, path string, known ...audit.Head) audit.Report {
	t.Helper()
	r, err := audit.Verify(path, known...)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Faults) > 0 {
		t.Fatalf("faults: %v", r.Faults)
	}
	return r
}

func files(t *testing.T, path string) []string {
	t.Helper()
	all, err := filepath.Glob(path + ".0*")
	if err != nil {
		t.Fatal(err)
	}
	return append(all, path)
}

func TestChainGoesOnAcrossFilesAndStarts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log", "audit.jsonl")
	cfg := audit.Config{Path: path, MaxSize: 1500}
	for range 4 {
		l := open(t, cfg)
		add(t, l, 5)
		shut(t, l)
	}
	r := whole(t, path)
	if r.Records != 20 || r.First != 1 || r.Last.Seq != 20 || r.Files < 3 {
		t.Errorf("got %+v", r)
	}
	for _, f := range append(files(t, path), path+".head") {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", f, fi.Mode().Perm())
		}
	}
}

func TestOldFilesAreFollowedByNewOnes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var mu sync.Mutex
	l := open(t, audit.Config{Path: path, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	for range 3 {
		add(t, l, 2)
		mu.Lock()
		now = now.Add(25 * time.Hour)
		mu.Unlock()
	}
	if got := len(files(t, path)); got != 3 {
		t.Errorf("%d files, want one a day", got)
	}
	whole(t, path)
}

func TestOneProcessWrites(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, audit.Config{Path: path})
	if _, err := audit.Open(t.Context(), audit.Config{Path: path}); !errors.Is(err, audit.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	shut(t, l)
	shut(t, l)
	if _, err := l.Append(t.Context(), stromboli.AuditRecord{Action: "a"}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	shut(t, open(t, audit.Config{Path: path}))
}

// Whatever many do at once, each finds its own record, and no record stands between.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, audit.Config{Path: path, MaxSize: 20_000})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				r := stromboli.AuditRecord{Action: "test.act", Object: fmt.Sprintf("%d/%d", i, j), Tenant: "default"}
				seq, err := l.Begin(context.Background(), r)
				if err == nil {
					r.Outcome = stromboli.AuditOK
					err = l.End(context.Background(), seq, r)
				}
				if err != nil {
					t.Error(err)
				}
				if page, err := l.Records(context.Background(), stromboli.AuditFilter{Tenant: "default", Object: r.Object, Limit: 5}); err != nil || len(page.Records) != 2 || page.Records[1].Intent != seq {
					t.Errorf("%s: %v in %+v", r.Object, err, page)
				}
			}
		})
	}
	wg.Go(func() { // beside a reader of the files
		for range 5 {
			if r, err := audit.Verify(path); err != nil || len(r.Faults) > 0 {
				t.Errorf("while it is written: %v, %v", err, r.Faults)
			}
		}
	})
	wg.Wait()
	if r := whole(t, path); r.Records != 320 || r.Open != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestIntentsWithoutOutcomeAreCounted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, audit.Config{Path: path})
	for range 2 {
		if _, err := l.Begin(t.Context(), stromboli.AuditRecord{Action: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.End(t.Context(), 2, stromboli.AuditRecord{Action: "a", Outcome: stromboli.AuditOK}); err != nil {
		t.Fatal(err)
	}
	if r := whole(t, path); r.Open != 1 {
		t.Errorf("got %+v", r)
	}
}

func TestTextsAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := open(t, audit.Config{Path: path})
	long := strings.Repeat("\x00\"\\\u2028\xff<", 2000)
	many := map[string]string{}
	for i := range 50 {
		many[long+fmt.Sprint(i)] = long
	}
	for i := range 50 {
		many[fmt.Sprint(i)] = long
	}
	r := stromboli.AuditRecord{
		Action: long, Tenant: long, Principal: long, Client: long, From: long, RequestID: long, Object: long, Outcome: long, Code: stromboli.Code(long), Detail: many,
	}
	if _, err := l.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	whole(t, path)
	fi, err := os.Stat(path)
	if err != nil || fi.Size() > 8<<10 {
		t.Errorf("%v, %d bytes", err, fi.Size())
	}
}

func TestAFloodIsCounted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := open(t, audit.Config{Path: path, Now: func() time.Time { return now }})
	for range 1000 {
		if err := l.Note(t.Context(), stromboli.AuditRecord{Action: "auth.failed"}); err != nil {
			t.Fatal(err)
		}
	}
	if r := whole(t, path); r.Records != 600 {
		t.Errorf("%d of a flood are recorded", r.Records)
	}
	now = now.Add(time.Minute)
	if err := l.Note(t.Context(), stromboli.AuditRecord{Action: "auth.failed"}); err != nil {
		t.Fatal(err)
	}
	page, err := l.Records(t.Context(), stromboli.AuditFilter{Server: true, After: 600, Limit: 9})
	if err != nil || len(page.Records) != 1 || page.Records[0].Detail["not_recorded_before"] != "400" {
		t.Errorf("%v, %+v", err, page)
	}
}
