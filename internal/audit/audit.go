// Package audit keeps the audit log: files of JSON lines, each of which holds the
// hash of the line before.
//
// It owns the files beside Config.Path: the file itself, to which records are
// appended; Path.<20 digits>, those that were full, named for their first
// record; and Path.head, which names the newest record. It promises that a record whose
// append has returned is on the disk; that one that couldn't be written is not there;
// that a change to any line, a missing line and one in another place is found
// by Verify, and a cut end by the head; and that one process at a time writes.
// It can't help against who rewrites every line from some point on, and the head
// with them: for those the newest hash must be known elsewhere, which is why
// it goes to the program's log from time to time.
//
// Room: what announces an outcome, Begin, reserves the room for it on the disk. So a full disk
// refuses what has not begun, and what has begun can still be recorded.
package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Config says where the log is. Only Path is required.
type Config struct {
	// Path of the file that records are appended to; its directory is made where
	// it is missing.
	Path string
	// MaxSize is how large a file gets before the next is begun, in bytes. Default:
	// 32 MiB.
	MaxSize int64
	// MaxAge is how old a file's first record gets before that. Default: a day.
	MaxAge time.Duration
	// Log is told the newest record's hash, and of faults. Default: nobody.
	Log *slog.Logger
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

const (
	defaultMaxSize = 32 << 20
	defaultMaxAge  = 24 * time.Hour

	// maxBatch bounds the records of one write.
	maxBatch = 256
	// tellHead is how often the log is told the newest hash.
	tellHead = time.Hour
)

// ErrInUse tells that another process has the log open.
var ErrInUse = errors.New("another process writes this audit log")

// ErrClosed tells that the log has been closed.
var ErrClosed = errors.New("the audit log is closed")

// DamagedError tells that the log isn't as it was left.
type DamagedError struct{ Fault Fault }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the audit log is damaged (%s): see `stromboli audit verify`, keep the files for who examines them, and move them away to begin a new log", e.Fault)
}

// Log is an open audit log. Its methods may be called from many goroutines.
type Log struct {
	cfg  Config
	head *os.File // locked
	ops  chan *op

	quit      chan struct{} // closed by Close
	stopped   chan struct{} // closed when the writer has ended
	closeOnce sync.Once
	closeErr  error

	last    atomic.Pointer[Head] // what is durable
	fault   atomic.Pointer[error]
	notes   budget
	pruning sync.Mutex
	names   sync.RWMutex // held while files get other names or go
	writing writerState  // the writer goroutine's, after Open
}

// Open opens the log, or makes it, and starts its writer; Close ends it. What a process
// that was killed had begun to write is taken away, and a record says so. A log that
// was damaged otherwise is refused: DamagedError. ctx bounds Open alone.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.MaxSize <= 0 {
		cfg.MaxSize = defaultMaxSize
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = defaultMaxAge
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	head, err := lockHead(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", cfg.Path, err)
	}
	l := &Log{cfg: cfg, head: head, ops: make(chan *op, maxBatch), quit: make(chan struct{}), stopped: make(chan struct{})}
	torn, err := l.resume()
	if err != nil {
		return nil, fmt.Errorf("audit log %s: %w", cfg.Path, errors.Join(err, head.Close()))
	}
	go l.write()
	if torn != nil {
		_, err := l.Append(ctx, *torn)
		if errors.Is(err, stromboli.StorageFull) { // the program's log has told of it
			err = nil
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("audit log %s: recording its repair: %w", cfg.Path, err), l.Close())
		}
	}
	l.tell("audit log opened")
	return l, nil
}

// Close writes what was accepted and lets go of the files. It may be called
// again.
func (l *Log) Close() error {
	l.closeOnce.Do(func() {
		close(l.quit)
		<-l.stopped
		l.tell("audit log closed")
		l.closeErr = errors.Join(l.writing.close(), l.head.Close())
	})
	return l.closeErr
}

// Head is the newest record that is durable.
func (l *Log) Head() Head { return *l.last.Load() }

// Err is why the newest record couldn't be written, or nil when it could.
func (l *Log) Err() error {
	if e := l.fault.Load(); e != nil {
		return *e
	}
	return nil
}

func (l *Log) tell(what string) {
	h := l.Head()
	l.cfg.Log.Info(what, "seq", h.Seq, "hash", h.Hash)
}

// Append records what has no intent; durable on return.
func (l *Log) Append(ctx context.Context, r stromboli.AuditRecord) (uint64, error) {
	if r.Stage == "" {
		r.Stage = stromboli.AuditEvent
	}
	return l.submit(ctx, &op{record: r})
}

// Begin records an intent, durable on return, and reserves the room for its
// outcome: each is followed by one End. stromboli.StorageFull where there is no room.
func (l *Log) Begin(ctx context.Context, r stromboli.AuditRecord) (uint64, error) {
	r.Stage, r.Outcome = stromboli.AuditIntent, ""
	return l.submit(ctx, &op{record: r, owes: 1})
}

// End records what became of an intent, durable on return, or gives its room
// back. Whether ctx has ended makes no difference: it has happened.
func (l *Log) End(ctx context.Context, intent uint64, r stromboli.AuditRecord) error {
	r.Stage, r.Intent = stromboli.AuditOutcome, intent
	_, err := l.submit(context.WithoutCancel(ctx), &op{record: r, owes: -1})
	return err
}

// Note records what strangers can cause at will, such as refused credentials: not
// every one of a flood. The next that is recorded says how many were not.
func (l *Log) Note(ctx context.Context, r stromboli.AuditRecord) error {
	missed, ok := l.notes.take(l.cfg.Now())
	if !ok {
		return nil
	}
	if missed > 0 {
		detail := map[string]string{"not_recorded_before": fmt.Sprint(missed)}
		for k, v := range r.Detail {
			detail[k] = v
		}
		r.Detail = detail
	}
	_, err := l.Append(ctx, r)
	return err
}
