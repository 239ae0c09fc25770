package egress

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func openTestAudit(t *testing.T, dir string) *audit {
	t.Helper()
	a, err := openAudit(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a
}

func host(name string) stromboli.EgressRecord { return stromboli.EgressRecord{Host: name} }

func hosts(a *audit, after int64) string {
	var list []string
	for i, r := range a.read(context.Background(), after, 1000, 0) {
		if r.Seq != after+int64(i)+1 {
			list = append(list, "GAP")
		}
		list = append(list, r.Host)
	}
	return strings.Join(list, " ")
}

// TestAuditSurvives: records go on where a process that died left them, a torn
// line is cut, and what was open has a record.
func TestAuditSurvives(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := openTestAudit(t, dir)
	one := a.begin(host("one"))
	a.begin(host("open"))
	a.end(one, host("one"))
	a.end(0, host("denied"))
	a.close()
	f, err := os.OpenFile(auditPath(dir, "a"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"open":9,"record":{"seq":3,"host":"to`)
	_ = f.Close()

	b := openTestAudit(t, dir)
	if got := hosts(b, 0); got != "one denied open" {
		t.Fatalf("after a death: %s", got)
	}
	if r := b.read(t.Context(), 2, 10, 0); len(r) != 1 || r[0].Seq != 3 || !strings.Contains(r[0].Why, "egress ended") {
		t.Fatalf("the open one: %+v", r)
	}
	b.close()
	c := openTestAudit(t, dir)
	c.end(0, host("next"))
	if got := hosts(c, 3); got != "next" { // what was read and not acknowledged again comes once more, in its place
		t.Fatalf("after another: %s", got)
	}
}

func TestAuditCompacts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := openTestAudit(t, dir)
	a.begin(host("open"))
	long := strings.Repeat("x", 1000)
	for range 2000 {
		a.end(0, host(long))
	}
	a.read(t.Context(), 1999, 10, 0)
	if info, err := os.Stat(auditPath(dir, "a")); err != nil || info.Size() > 10_000 {
		t.Fatalf("%v, %v", info, err)
	}
	a.end(0, host("last"))
	a.close()
	b := openTestAudit(t, dir)
	if got := hosts(b, 1999); got != long+" last open" {
		t.Fatalf("after compaction: %.60s", got)
	}
}

// TestAuditFull: with nobody reading, connections wait; nothing is dropped.
func TestAuditFull(t *testing.T) {
	t.Parallel()
	a := openTestAudit(t, t.TempDir())
	for range maxUnread {
		a.end(0, host("x"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := a.room(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("with no room: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- a.room(context.Background()) }()
	a.read(t.Context(), 10, 1, 0)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestAuditUnwritable: no connection begins that could not be recorded.
func TestAuditUnwritable(t *testing.T) {
	t.Parallel()
	a := openTestAudit(t, t.TempDir())
	file := a.file
	readOnly, err := os.Open(a.path) // as a disk that is full: writes fail
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = readOnly.Close() }()
	a.file = readOnly
	a.end(0, host("x"))
	if err := a.room(t.Context()); !errors.Is(err, errAudit) {
		t.Fatalf("unwritable: %v", err)
	}
	a.file = file
	if err := a.room(t.Context()); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	if data, err := os.ReadFile(a.path); err != nil || !strings.Contains(string(data), `"seq":1`) {
		t.Fatalf("%s, %v", data, err)
	}
}
