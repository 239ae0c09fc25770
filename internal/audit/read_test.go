package audit_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
)

func TestRecordsByPagesAndFilters(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := now
	l := open(t, audit.Config{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxSize: 10_000, Now: func() time.Time { return at }})
	for i := range 300 {
		at = now.Add(time.Duration(i) * time.Minute)
		r := stromboli.AuditRecord{Action: "run.submit", Tenant: "a", Principal: "ci", Object: fmt.Sprintf("run-%d", i)}
		switch i % 10 {
		case 1:
			r.Tenant = "b"
		case 2:
			r.Tenant = ""
		case 3:
			r.Action, r.Principal = "secret.create", "ops"
		}
		if _, err := l.Append(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		f    stromboli.AuditFilter
		want int
	}{
		{"one tenant", stromboli.AuditFilter{Tenant: "a"}, 240},
		{"and the server's own", stromboli.AuditFilter{Tenant: "a", Server: true}, 270},
		{"another", stromboli.AuditFilter{Tenant: "b"}, 30},
		{"after", stromboli.AuditFilter{Tenant: "a", After: 290}, 8},
		{"after the end", stromboli.AuditFilter{Tenant: "a", After: 5000}, 0},
		{"action", stromboli.AuditFilter{Tenant: "a", Action: "secret.create"}, 30},
		{"actions", stromboli.AuditFilter{Tenant: "a", Action: "run."}, 210},
		{"principal", stromboli.AuditFilter{Tenant: "a", Principal: "ops"}, 30},
		{"object", stromboli.AuditFilter{Tenant: "a", Object: "run-150"}, 1},
		{"since", stromboli.AuditFilter{Tenant: "a", Since: now.Add(200 * time.Minute)}, 80},
		{"until", stromboli.AuditFilter{Tenant: "a", Until: now.Add(100 * time.Minute)}, 80},
	} {
		for _, limit := range []int{7, 1000} {
			f := tt.f
			f.Limit = limit
			n, last, more := 0, f.After, true
			for more {
				page, err := l.Records(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range page.Records {
					if r.Seq <= last {
						t.Fatalf("%s: record %d after %d", tt.name, r.Seq, last)
					}
					last = r.Seq
				}
				if n += len(page.Records); len(page.Records) > limit {
					t.Errorf("%s: a page of %d", tt.name, len(page.Records))
				}
				f.After, more = page.Next, page.More
			}
			if n != tt.want {
				t.Errorf("%s by %d: %d records, want %d", tt.name, limit, n, tt.want)
			}
		}
	}
}

func TestPrunedLogsCanBeVerified(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := now
	l := open(t, audit.Config{Path: path, MaxSize: 1000, Now: func() time.Time { return at }})
	for i := range 40 {
		at = now.Add(time.Duration(i) * time.Hour)
		add(t, l, 1)
	}
	had := len(files(t, path))
	if n, err := l.Prune(t.Context(), now); n != 0 || err != nil {
		t.Errorf("nothing is that old: %d, %v", n, err)
	}
	for _, hours := range []int{10, 30} {
		n, err := l.Prune(t.Context(), now.Add(time.Duration(hours)*time.Hour))
		if n == 0 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		had -= n
		r := whole(t, path)
		if r.First <= uint64(hours)-5 || r.First > uint64(hours)+1 {
			t.Errorf("the oldest record is %d", r.First)
		}
	}
	page, err := l.Records(t.Context(), stromboli.AuditFilter{Tenant: "default", Limit: 100})
	if err != nil || len(page.Records) == 0 || page.More {
		t.Errorf("%v, %+v", err, page)
	}
	shut(t, l)
	// Cut short: files are there that the record says are gone.
	remove(t, files(t, path)[0])
	if r, err := audit.Verify(path); err != nil || len(r.Faults) == 0 {
		t.Errorf("one more file is gone: %v, %v", err, r.Faults)
	}
}

func TestAPruneThatWasCutShort(t *testing.T) {
	t.Parallel()
	path, _ := made(t)
	all := files(t, path)
	kept := linesOf(t, all[1])
	l := open(t, audit.Config{Path: path})
	if n, err := l.Prune(t.Context(), time.Now().Add(time.Hour)); n < 2 || err != nil {
		t.Fatal(n, err)
	}
	shut(t, l)
	write(t, all[1], kept...)
	whole(t, path)
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{}\n"), []byte("1:x"))
	f.Add([]byte(`{"seq":1,"at":"2026-01-01T00:00:00Z","stage":"event","action":"a","prev":"0","hash":"0"}`+"\n"), []byte(""))
	f.Fuzz(func(t *testing.T, log, head []byte) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		write(t, path, string(log))
		write(t, path+".head", string(head))
		r, err := audit.Verify(path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Records > 0 && len(r.Faults) == 0 {
			t.Error("a forged record of nobody's is taken")
		}
		l, err := audit.Open(t.Context(), audit.Config{Path: path})
		if err != nil {
			return
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole(t, path)
	})
}
