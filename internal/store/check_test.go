package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// damage fills a table's first page with what is no page, as another program
// that writes to the wrong place would, and returns the page as it was.
func damage(t *testing.T, path, table string) (mend func()) {
	t.Helper()
	var root, size int64
	conn := other(t, "file:"+path+"?mode=ro")
	if err := conn.QueryRowContext(t.Context(), `SELECT rootpage FROM sqlite_master WHERE name = ?`, table).Scan(&root); err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRowContext(t.Context(), `PRAGMA page_size`).Scan(&size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	page := make([]byte, size)
	if _, err := f.ReadAt(page, (root-1)*size); err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		t.Helper()
		if _, err := f.WriteAt(b, (root-1)*size); err != nil {
			t.Fatal(err)
		}
	}
	put([]byte(strings.Repeat("\xff", int(size))))
	return func() { put(page) }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for: %s", what)
}

func watch(t *testing.T, s *store.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Watch(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// TestVerify: damage is found whether or not the database is open, and looking
// for it changes nothing.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	s := open(t, store.Config{Path: path})
	create(t, s)
	if err := store.Verify(t.Context(), path); err != nil {
		t.Errorf("open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.Verify(t.Context(), path); err != nil {
		t.Errorf("closed: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files: %v, %v", entries, err)
	}
	damage(t, path, "secrets")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Verify(t.Context(), path); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("damaged: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed, %v", err)
	}
	if err := store.Verify(t.Context(), filepath.Join(dir, "none")); err == nil || errors.Is(err, store.ErrCorrupt) {
		t.Errorf("missing: %v", err)
	}
}

// TestDamageFound: damage that nobody has run into is found all the same; then
// no run is made, the rest is tried as ever, and nothing is deleted.
func TestDamageFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := open(t, store.Config{Path: path})
	run := create(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mend := damage(t, path, "secrets")
	s = open(t, store.Config{Path: path})
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("before anybody looked: %v", err)
	}
	watch(t, s)
	eventually(t, "the damage to be found", func() bool { return s.Damage() != nil })
	err := s.Check(t.Context())
	if !errors.Is(err, store.ErrCorrupt) || !errors.Is(err, stromboli.StorageDamaged) || !strings.Contains(err.Error(), "restore a backup") {
		t.Errorf("check: %v", err)
	}
	if _, _, err := s.CreateRun(t.Context(), runningRun()); !errors.Is(err, stromboli.StorageDamaged) {
		t.Errorf("a new run: %v", err)
	}
	if _, _, err := s.ClaimPending(t.Context(), "one"); !errors.Is(err, stromboli.StorageDamaged) {
		t.Errorf("a claim: %v", err)
	}
	if _, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x"}}); err != nil {
		t.Errorf("what runs: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	mend()
	s = open(t, store.Config{Path: path})
	watch(t, s)
	create(t, s)
}

// TestDamageMet: who runs into damage has it told; where the file turns out to
// be whole, it is forgotten.
func TestDamageMet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := open(t, store.Config{Path: path})
	run := create(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mend := damage(t, path, "events")
	s = open(t, store.Config{Path: path})
	if _, err := s.Events(t.Context(), run.ID, 0, 10); !errors.Is(err, store.ErrCorrupt) {
		t.Fatal(err)
	}
	if s.Damage() == nil || s.Check(t.Context()) == nil {
		t.Error("nobody was told")
	}
	mend()
	watch(t, s)
	eventually(t, "the damage to be forgotten", func() bool { return s.Damage() == nil })
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	create(t, s)
}

// TestCheck: a lock and a full disk are told of, and that they have passed.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	small := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0700") == nil
	if small {
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	}
	path := filepath.Join(dir, "x.db")
	s := open(t, store.Config{Path: path, BusyTimeout: 10 * time.Millisecond})
	create(t, s)
	for range 3 {
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	lock := other(t, path)
	sqlExec(t, lock, "BEGIN IMMEDIATE")
	if err := s.Check(t.Context()); !errors.Is(err, store.ErrLocked) {
		t.Errorf("locked: %v", err)
	}
	sqlExec(t, lock, "ROLLBACK")
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if !small {
		t.Skip("mounting a small disk needs root")
	}
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	_ = f.Close()
	failed := false
	for range 100 { // what the log has room for still succeeds
		if _, _, err := s.CreateRun(t.Context(), runningRun()); errors.Is(err, stromboli.StorageFull) {
			failed = true
			break
		}
	}
	if !failed {
		t.Fatal("the disk isn't full")
	}
	if err := s.Check(t.Context()); !errors.Is(err, stromboli.StorageFull) {
		t.Errorf("full: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("with space again: %v", err)
	}
	create(t, s)
}
