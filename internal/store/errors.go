package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tomblancdev/stromboli"
)

// What a caller may want to tell apart, beside the codes of stromboli.Error:
// NotFound, Conflict (the run has ended), SessionExists, SessionBusy, QueueFull,
// KeyReused and StorageFull.
var (
	// ErrFenced: the run is executed by another server, or by a later
	// incarnation of this one. Nothing was written; the caller lets go of it.
	ErrFenced = errors.New("the run belongs to another owner")
	// ErrStale: the session's transcript was saved by someone else since the
	// version that the caller expected. Nothing was written.
	ErrStale = errors.New("the transcript has a newer version")
	// ErrCancelWanted: someone was promised that the run ends as cancelled, so
	// it can't end otherwise. Nothing was written; finish it as cancelled.
	ErrCancelWanted = errors.New("the run's cancellation was requested")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("the store is closed")
	// ErrLocked: another program holds the database's lock. Nothing was written.
	ErrLocked = errors.New("the database is locked by another program")
	// ErrCorrupt: the database file is damaged.
	ErrCorrupt = errors.New("the database is damaged")
	// ErrNewerSchema: the database was written by a newer release.
	ErrNewerSchema = errors.New("the database is of a newer release")
)

// classify gives driver errors their meaning and says what was being done.
// Errors of our own pass unchanged.
func (s *Store) classify(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*stromboli.Error](err); ok {
		return err
	}
	if errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("%s: %w", doing, ErrClosed)
	}
	driver, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		select {
		case <-s.quit: // database/sql has no value for "database is closed"
			return fmt.Errorf("%s: %w", doing, ErrClosed)
		default:
		}
		return fmt.Errorf("%s: %w", doing, err)
	}
	switch driver.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return s.full(doing, err)
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN:
		// The code doesn't carry the errno: ask the file system.
		if s.noSpace() {
			return s.full(doing, err)
		}
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return (&stromboli.Error{
			Code: stromboli.StorageBusy, Message: "the database is locked by another program", RetryAfter: time.Second,
		}).WithCause(fmt.Errorf("%s: %w: %w", doing, ErrLocked, err))
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		err = s.corrupt(doing, err)
		s.damaged(err)
		return err
	case sqlite3.SQLITE_INTERRUPT:
		return fmt.Errorf("%s: %w: %w", doing, context.Canceled, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// saysCorrupt reports whether the driver calls the file damaged.
func saysCorrupt(err error) bool {
	driver, ok := errors.AsType[*sqlite.Error](err)
	code := 0
	if ok {
		code = driver.Code() & 0xff
	}
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

func (s *Store) full(doing string, err error) error {
	return stromboli.Errorf(stromboli.StorageFull, "the disk that holds the server's data is full").
		WithCause(fmt.Errorf("%s: %w", doing, err))
}

func (s *Store) noSpace() bool {
	const enough = 256 << 10
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.path), &st); err != nil {
		return false
	}
	return st.Bavail*uint64(st.Bsize) < enough //nolint:gosec // a block size is positive
}

func errNoRun(id string) error {
	return stromboli.Errorf(stromboli.NotFound, "there is no run %q", id)
}

func errNoSession(id string) error {
	return stromboli.Errorf(stromboli.NotFound, "there is no session %q", id)
}

func errDeleting(id string) error {
	return stromboli.Errorf(stromboli.SessionBusy, "session %s is being deleted; try again in a moment", id)
}

func errEnded(id string, status stromboli.Status) error {
	return stromboli.Errorf(stromboli.Conflict, "run %s has already ended (%s)", id, status)
}
