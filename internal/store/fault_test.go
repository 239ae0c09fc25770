package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func runningRun() stromboli.NewRun {
	return stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(time.Now()), Tenant: stromboli.DefaultTenant, Kind: stromboli.KindAsync,
			SessionID: uuid.NewString(), Status: stromboli.Running, Owner: "one", Spec: stromboli.RunSpec{Prompt: "p"},
		},
		Events:        []stromboli.Event{{Type: stromboli.EventRunCreated}},
		CreateSession: &stromboli.Session{},
	}
}

func create(tb testing.TB, s *store.Store) stromboli.Run {
	tb.Helper()
	run, _, err := s.CreateRun(tb.Context(), runningRun())
	if err != nil {
		tb.Fatal(err)
	}
	return run
}

// other opens the database as another program would.
func other(t *testing.T, path string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = db.Close()
	})
	return conn
}

func sqlExec(t *testing.T, conn *sql.Conn, query string) {
	t.Helper()
	if _, err := conn.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a dir with ? # % and spaces", "x.db")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{Path: path})
	run := create(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if sizes, err := s.Sizes(); err != nil || sizes.Database == 0 || sizes.WAL != 0 {
		t.Errorf("sizes after Close: %+v, %v", sizes, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	_, err := s.GetRun(t.Context(), run.Tenant, run.ID)
	if !errors.Is(err, store.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := s.AppendEvents(t.Context(), run.ID, 1, nil); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	s = open(t, store.Config{Path: path})
	if got, err := s.GetRun(t.Context(), run.Tenant, run.ID); err != nil || got.ID != run.ID {
		t.Errorf("after reopening: %+v, %v", got, err)
	}
}

func TestNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := open(t, store.Config{Path: path}).Close(); err != nil {
		t.Fatal(err)
	}
	conn := other(t, path)
	sqlExec(t, conn, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	_, err := store.Open(t.Context(), store.Config{Path: path})
	if !errors.Is(err, store.ErrNewerSchema) || !strings.Contains(err.Error(), "9999") {
		t.Errorf("error %v", err)
	}
}

func TestNotADatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("this is no database ", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), store.Config{Path: path})
	if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("error %v", err)
	}
}

func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := open(t, store.Config{Path: path})
	run := create(t, s)
	for range 50 {
		if _, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x", Data: []byte(strings.Repeat("y", 6000))}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096 * 3; i < len(b); i++ { // the schema stays, the rest is gone
		if i%4096 < 200 {
			b[i] = 0xff
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err = store.Open(t.Context(), store.Config{Path: path})
	if err == nil {
		_, err = s.ActiveRuns(t.Context())
		if err == nil {
			_, err = s.Events(t.Context(), run.ID, 0, 100)
		}
		_ = s.Close()
	}
	if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(err.Error(), ".recover") {
		t.Errorf("error %v", err)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	s := open(t, store.Config{Path: path, BusyTimeout: 50 * time.Millisecond})
	run := create(t, s)
	conn := other(t, path)
	sqlExec(t, conn, `BEGIN IMMEDIATE`)
	_, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x", Line: 1}})
	if !errors.Is(err, store.ErrLocked) {
		t.Errorf("error %v", err)
	}
	if _, err := s.GetRun(t.Context(), run.Tenant, run.ID); err != nil {
		t.Errorf("reading while locked: %v", err)
	}
	sqlExec(t, conn, `ROLLBACK`)
	evs, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x", Line: 1}})
	if err != nil || len(evs) != 1 || evs[0].Seq != 2 {
		t.Errorf("after the lock: %v, %v", evs, err)
	}
}

// TestFull fills the database to its page limit: the writes that don't fit are
// refused by name, those that fit go on, and nothing is half there.
func TestFull(t *testing.T) {
	s := open(t, store.Config{})
	var mu sync.Mutex
	told := 0
	s.OnCommit(func(_ string, events []stromboli.Event) {
		mu.Lock()
		defer mu.Unlock()
		told += len(events)
	})
	run := create(t, s)
	if err := s.LimitPages(t.Context(), 200); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var full, stored int
	for w := range 4 {
		wg.Go(func() {
			for i := range 40 {
				data := fmt.Sprintf(`"%s"`, strings.Repeat("z", 100+(w%2)*40000))
				evs, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x", Data: []byte(data)}, {Type: "y"}})
				mu.Lock()
				switch {
				case errors.Is(err, stromboli.StorageFull):
					full++
				case err != nil:
					t.Errorf("write %d: %v", i, err)
				default:
					stored += len(evs)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if full == 0 || stored == 0 {
		t.Errorf("%d refused, %d stored: both should happen", full, stored)
	}
	if err := s.LimitPages(t.Context(), 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{{Type: "x"}}); err != nil {
		t.Errorf("with space again: %v", err)
	}
	last, _, err := s.LastEvent(t.Context(), run.ID)
	mu.Lock()
	defer mu.Unlock()
	if err != nil || last != int64(stored)+2 || told != stored+2 {
		t.Errorf("last sequence %d, told %d, %v; want %d", last, told, err, stored+2)
	}
}

func TestCloseUnderLoad(t *testing.T) {
	s := open(t, store.Config{})
	run := create(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	started := make(chan struct{}, 16)
	for range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				_, err := s.AppendEvents(ctx, run.ID, 1, []stromboli.Event{{Type: "x"}})
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if i == 0 {
					started <- struct{}{}
				}
			}
		})
	}
	<-started
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
