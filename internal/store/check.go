package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	// verifyEvery is how often the whole file is read, verifyAgain how soon after
	// damage was met, and verifyLimit how long that may take.
	verifyEvery = 24 * time.Hour
	verifyAgain = time.Minute
	verifyLimit = 15 * time.Minute
)

// condition is what is known of the database's state.
type condition struct {
	// failing: the last write that was one failed for other reasons than a lock.
	failing atomic.Bool
	suspect chan struct{} // one slot: damage was met

	mu     sync.Mutex
	damage error
}

// Damage is why the database is held to be damaged, an ErrCorrupt; nil: it isn't.
// While it is, no run is made or claimed, and everything else is tried as ever.
func (s *Store) Damage() error {
	s.condition.mu.Lock()
	defer s.condition.mu.Unlock()
	return s.condition.damage
}

func (s *Store) setDamage(err error) {
	s.condition.mu.Lock()
	defer s.condition.mu.Unlock()
	s.condition.damage = err
}

// damaged remembers damage that was met, and has the file looked at.
func (s *Store) damaged(err error) {
	s.setDamage(err)
	select {
	case s.condition.suspect <- struct{}{}:
	default:
	}
}

// wrote remembers whether writes succeed. A transaction may have had nothing to
// write: only one that surely had proves that they do.
func (s *Store) wrote(err error, surely bool) {
	switch {
	case err == nil:
		if surely {
			s.condition.failing.Store(false)
		}
	case errors.Is(err, ErrLocked), errors.Is(err, ErrClosed), errors.Is(err, context.Canceled):
	default:
		s.condition.failing.Store(true)
	}
}

// Check reports whether the database can be read and written now: nil, or what a
// caller would be told. It waits for its turn among the writes. It writes
// nothing, unless the last write failed: then a page, to find out whether that
// has passed.
func (s *Store) Check(ctx context.Context) error {
	if err := s.Damage(); err != nil {
		return err
	}
	var one int
	err := s.readDB.QueryRowContext(ctx, "SELECT 1 FROM runs LIMIT 1").Scan(&one)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return s.classify("read", err)
	}
	probe := &op{doing: "write", probe: true, done: make(chan struct{})}
	probe.do = func(t *tx) error {
		if !s.condition.failing.Load() {
			return nil
		}
		_, err := t.exec("PRAGMA user_version = 0") // it is 0, and written all the same
		probe.wrote = err == nil
		return err
	}
	return s.submit(ctx, probe)
}

// Watch reads the whole file now, once a day, and when damage is met, until ctx
// ends; what it finds, Damage tells. Damage that was met where the file turns out
// to be whole was a fault of the reading, and is forgotten. The file is never
// changed, and read once a minute at most.
func (s *Store) Watch(ctx context.Context) error {
	for {
		next := s.verify(ctx)
		pause := time.NewTimer(verifyAgain)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		pause.Reset(next - verifyAgain)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		case <-s.condition.suspect: // met since the file began to be read
		}
		pause.Stop()
	}
}

// verify returns when to look again.
func (s *Store) verify(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	err := Verify(ctx, s.path)
	switch {
	case ctx.Err() != nil: // cut short: nothing was found out
	case errors.Is(err, ErrCorrupt):
		s.setDamage(s.corrupt("verify the database", err))
	case err == nil:
		s.setDamage(nil)
	}
	if s.Damage() != nil {
		return verifyAgain
	}
	return verifyEvery
}

// Verify reads a whole database file, which a server may be using, and reports
// whether it is damaged (ErrCorrupt). It changes nothing.
func Verify(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("verify the database: %w", err)
	}
	// A database that nobody has open has no write-ahead log, and gets none.
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("verify the database: %w", err)
	}
	_, err = os.Stat(path + "-wal")
	still := errors.Is(err, os.ErrNotExist)
	err = verify(ctx, path, still)
	if err != nil && still {
		if _, serr := os.Stat(path + "-wal"); serr == nil { // a server has begun meanwhile
			return verify(ctx, path, false)
		}
	}
	return err
}

func verify(ctx context.Context, path string, still bool) (err error) {
	pragmas := []string{"query_only(1)"}
	if still {
		pragmas = append(pragmas, "immutable")
	}
	db, err := openFile(path, "ro", pragmas...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	err = db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict)
	switch {
	case err == nil && verdict == "ok":
		return nil
	case err == nil:
		return fmt.Errorf("%w: %s: %s", ErrCorrupt, path, strings.Join(strings.Fields(verdict), " "))
	case saysCorrupt(err):
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
	case ctx.Err() != nil:
		return fmt.Errorf("verify the database: %w", ctx.Err())
	}
	return fmt.Errorf("verify the database: %w", err)
}

// corrupt is what is told of damage: what to do to the log, that somebody has to
// do it to callers.
func (s *Store) corrupt(doing string, err error) error {
	return (&stromboli.Error{
		Code: stromboli.StorageDamaged, Message: "the server's database is damaged: its operator has to restore it", RetryAfter: time.Minute,
	}).WithCause(fmt.Errorf("%s: %w: stop the server, keep a copy of %s and the files beside it, then restore a backup or save what is readable with `sqlite3 %s .recover` (docs/operations.md): %w",
		doing, ErrCorrupt, s.path, filepath.Base(s.path), err))
}
