// Package store keeps runs, sessions, events, idempotency keys and the outbox of
// webhooks in one SQLite file.
//
// It owns the file, its schema and every transaction on it. It promises that
// whatever a method has returned without an error is on the disk and survives
// kill -9 and the loss of power; that each method is one transaction; that a
// write which carries an old epoch changes nothing (ErrFenced); and that the
// events of a run count 1, 2, 3… without gaps. It refuses to open a schema that
// is newer than the program.
//
// It decides nothing about runs: which status follows, when to retry and what a
// cancelled run's outcome is are the caller's, within the bounds of
// stromboli.Status.CanBecome.
//
// All writes go through one goroutine with one connection. It commits whatever
// gathered during the last commit in one immediate transaction, each write in
// a savepoint of its own, so that one that fails harms no other. Reads use a
// small pool of read-only connections and see everything that was committed
// before they began.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/tomblancdev/stromboli"
)

const (
	defaultBusyTimeout = 5 * time.Second
	readConns          = 4

	keepIdempotency = 24 * time.Hour
)

// Config says where the database is. Only Path is required.
type Config struct {
	// Path of the database file. Its directory must exist. SQLite keeps two
	// more files beside it, with the suffixes -wal and -shm.
	Path string
	// BusyTimeout is how long a call waits for another program that holds the
	// database's lock before it fails with ErrLocked. Default: 5 s.
	BusyTimeout time.Duration
	// KeepIdempotency is how long a key stands for the run it made. Default: 24 h.
	KeepIdempotency time.Duration
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Committed, if set, is told of each transaction: how long it took, with its
	// commit, how many writes it was of, and what went wrong. The writer calls
	// it, so it must be quick and must not call the store.
	Committed func(took time.Duration, writes int, err error)
}

// Store is an open database. Its methods may be called from many goroutines.
type Store struct {
	path string
	now  func() time.Time

	committed func(took time.Duration, writes int, err error)

	maxGrants int64
	keepKeys  time.Duration

	condition condition

	writeDB *sql.DB // one connection, the writer goroutine's
	readDB  *sql.DB

	ops     chan *op
	due     chan struct{} // one slot: deliveries have changed
	quit    chan struct{} // closed by Close: nothing new is accepted
	stopped chan struct{} // closed when the writer goroutine has ended

	mu       sync.Mutex
	onCommit func(runID string, events []stromboli.Event)

	closeOnce sync.Once
	closeErr  error
}

// Open opens the database, makes it if it is missing, brings its schema up to
// date and starts the writer; Close ends it. ctx bounds Open alone.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if cfg.BusyTimeout <= 0 {
		cfg.BusyTimeout = defaultBusyTimeout
	}
	if cfg.KeepIdempotency <= 0 {
		cfg.KeepIdempotency = keepIdempotency
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := touch(path); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		path: path,
		now:  cfg.Now,

		committed: cfg.Committed,

		maxGrants: maxGrants,
		keepKeys:  cfg.KeepIdempotency,

		condition: condition{suspect: make(chan struct{}, 1)},

		ops:     make(chan *op, maxBatch),
		due:     make(chan struct{}, 1),
		quit:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	if err := s.connect(ctx, cfg.BusyTimeout); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) connect(ctx context.Context, busy time.Duration) (err error) {
	if s.writeDB, err = sql.Open("sqlite", s.dsn(busy, "rw",
		"journal_mode(WAL)", "synchronous(FULL)", "journal_size_limit(67108864)")); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.writeDB.SetMaxOpenConns(1)
	defer func() {
		if err != nil {
			_ = s.writeDB.Close()
		}
	}()
	if err := migrate(ctx, s.writeDB); err != nil {
		return s.classify("open store", err)
	}
	if s.readDB, err = sql.Open("sqlite", s.dsn(busy, "ro", "query_only(1)")); err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	s.readDB.SetMaxOpenConns(readConns)
	s.readDB.SetMaxIdleConns(readConns)
	s.readDB.SetConnMaxIdleTime(time.Minute)
	conn, err := s.writeDB.Conn(ctx)
	if err != nil {
		_ = s.readDB.Close()
		return s.classify("open store", err)
	}
	// The writer's statements outlive the ctx of Open and of every caller: a
	// write that has begun is carried through.
	go s.writer(&tx{ctx: context.WithoutCancel(ctx), conn: conn, stmts: map[string]*sql.Stmt{}})
	return nil
}

// dsn is the URI form, in which SQLite decodes the path: any file name works.
func (s *Store) dsn(busy time.Duration, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds())}}
	q["_pragma"] = append(q["_pragma"], pragmas...)
	return (&url.URL{Scheme: "file", Path: s.path, RawQuery: q.Encode()}).String()
}

// touch makes the file, for its owner alone: the files that SQLite puts beside
// it inherit its mode.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// OnCommit names the function that is told of every event after it was
// committed, whichever method stored it: per run in the order of its sequence,
// before the method returns. It is called by the writer, so it must be quick
// and must not call the store. Set it before the first write; there is one.
func (s *Store) OnCommit(fn func(runID string, events []stromboli.Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCommit = fn
}

func (s *Store) hook() func(string, []stromboli.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.onCommit
}

// Close carries out the writes that were accepted, moves the write-ahead log
// into the database file and closes it. Later calls fail with ErrClosed. It may
// be called more than once.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.quit)
		<-s.stopped
		s.closeErr = errors.Join(s.readDB.Close(), s.checkpoint(), s.writeDB.Close())
	})
	return s.closeErr
}

func (s *Store) checkpoint() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err := s.writeDB.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
	if err = s.classify("checkpoint", err); errors.Is(err, stromboli.StorageFull) {
		return nil // what was written is durable in the log, which the next Open reads
	}
	return err
}

// Sizes are the bytes that the store's files take.
type Sizes struct {
	Database int64
	WAL      int64
}

// Sizes reports the present sizes of the files.
func (s *Store) Sizes() (Sizes, error) {
	var out Sizes
	for name, size := range map[string]*int64{s.path: &out.Database, s.path + "-wal": &out.WAL} {
		fi, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return Sizes{}, fmt.Errorf("size of the store: %w", err)
		default:
			*size = fi.Size()
		}
	}
	return out, nil
}
