package audit_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
)

// A full disk refuses what has not begun, loses no outcome of what has, and the
// log goes on when there is room again.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skip("no small disk can be mounted here:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "audit.jsonl")
	l := open(t, audit.Config{Path: path})
	r := stromboli.AuditRecord{Action: "test.act", Tenant: "default"}
	var mu sync.Mutex
	var begun []uint64
	refused := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				seq, err := l.Begin(context.Background(), r)
				mu.Lock()
				switch {
				case err == nil:
					begun = append(begun, seq)
				case errors.Is(err, stromboli.StorageFull):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if refused == 0 || len(begun) < 50 {
		t.Fatalf("%d refused, %d begun", refused, len(begun))
	}
	if l.Err() == nil {
		t.Error("the log is said to be well")
	}
	events, err := 0, error(nil)
	for ; err == nil && events < 1000; events++ { // what needs no outcome takes what is left
		_, err = l.Append(t.Context(), r)
	}
	if events--; !errors.Is(err, stromboli.StorageFull) {
		t.Errorf("an event: %v", err)
	}
	for _, seq := range begun {
		r.Outcome, r.Object = stromboli.AuditOK, fmt.Sprint(seq)
		if err := l.End(t.Context(), seq, r); err != nil {
			t.Fatalf("an outcome is lost: %v", err)
		}
	}
	if r := whole(t, path); r.Open != 0 || r.Records != uint64(2*len(begun)+events) {
		t.Errorf("got %+v", r)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); l.Err() != nil; { // it is well again by itself
		if time.Since(begin) > time.Minute {
			t.Fatal(l.Err())
		}
		select {
		case <-t.Context().Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	add(t, l, 10)
	if err := l.Err(); err != nil {
		t.Error(err)
	}
	shut(t, l)
	whole(t, path)
}
