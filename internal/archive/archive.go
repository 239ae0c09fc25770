// Package archive keeps the events of finished runs as compressed files outside
// of the database, and reads them as the database would.
//
// It owns the blobs below the key events/ and the moves between the two places. It
// promises that at every moment, whoever dies, a run's events are in the database,
// in a whole archive that the database names, or in both: rows are deleted only
// after the archive is durable and recorded, and that a blob exists is recorded
// before it is made, so that whoever deletes the run or its session deletes the blob.
// A bucket that doesn't answer, or a full disk, costs nothing but space: the events
// stay where they are, and the move is tried again later.
//
// An archive is a sequence of zstd frames of JSON lines, which zstdcat prints. The
// database knows where in it which events are, so that a page costs the reading of
// a frame or two, however long the log is.
package archive

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	// moveTime bounds the writing of one archive, callTime any other call of a
	// bucket.
	moveTime = 15 * time.Minute
	callTime = time.Minute
	// retryAfter is when a caller may ask again whom a bucket did not answer.
	retryAfter = 30 * time.Second
)

// Local names the server's own directory of blobs.
const Local = "local"

// Bucket keeps blobs. Put is durable on return and leaves the old blob on an error;
// GetRange tells a missing one by stromboli.NotFound; deleting one is success.
type Bucket interface {
	Put(ctx context.Context, key string, r io.Reader) (int64, error)
	GetRange(ctx context.Context, key string, offset, n int64) (io.ReadCloser, error)
	Delete(ctx context.Context, key string) error
}

// Store is where runs, their events and what is known of archives are; its methods
// are those of store.Store.
type Store interface {
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
	EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error)
	FinishedRun(ctx context.Context, id string) (stromboli.FinishedRun, error)
	BeginArchive(ctx context.Context, a stromboli.Archive) error
	EndArchive(ctx context.Context, a stromboli.Archive) error
	GetArchive(ctx context.Context, runID string) (stromboli.Archive, error)
	DeleteArchivedEvents(ctx context.Context, runID string) error
	ForgetArchive(ctx context.Context, runID string) error
	ArchivesOfSession(ctx context.Context, sessionID string) ([]stromboli.FinishedRun, error)
	DeleteRun(ctx context.Context, runID string) error
}

// Config makes an Archive.
type Config struct {
	Store Store
	// Buckets by name, among them all in which there may be archives; new ones are
	// made in Place.
	Buckets map[string]Bucket
	Place   string
	Log     *slog.Logger
}

// Archive is the archive of one store. Its methods may be called from many
// goroutines; one process at a time may have one.
type Archive struct {
	cfg Config

	mu    sync.Mutex
	busy  map[string]chan struct{} // runs whose archive is being changed
	fault error                    // of the last call of the bucket
}

// New returns the archive. It starts nothing.
func New(cfg Config) *Archive {
	return &Archive{cfg: cfg, busy: make(map[string]chan struct{})}
}

// Fault says why events could not be archived, read or deleted the last time;
// empty: they could.
func (a *Archive) Fault() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fault == nil {
		return ""
	}
	return a.fault.Error()
}

// told remembers how a call of a bucket went, and returns its error.
func (a *Archive) told(ctx context.Context, err error) error {
	if err != nil && (ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, stromboli.NotFound)) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = err
	return err
}

// bucket finds the bucket of a name. Where it isn't configured any more nobody can
// read or delete what is in it.
func (a *Archive) bucket(place string) (Bucket, error) {
	place = strings.TrimPrefix(place, stromboli.SharedArchive)
	if b, ok := a.cfg.Buckets[place]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("the archive is in %s, which STROMBOLI_ARCHIVE_URL doesn't name any more", place)
}

// lock waits until nobody else changes a run's archive.
func (a *Archive) lock(ctx context.Context, runID string) (unlock func(), err error) {
	for {
		a.mu.Lock()
		other, busy := a.busy[runID]
		if !busy {
			mine := make(chan struct{})
			a.busy[runID] = mine
			a.mu.Unlock()
			return func() {
				a.mu.Lock()
				defer a.mu.Unlock()
				delete(a.busy, runID)
				close(mine)
			}, nil
		}
		a.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// newKey names the blob of a run's events. No two are alike: a server that was
// restored from this one's backup may archive the same run in the same bucket.
func newKey(run stromboli.FinishedRun) string {
	return "events/" + run.SessionID + "/" + run.ID + "-" + strings.ToLower(rand.Text()[:8]) + ".jsonl.zst"
}

// Move moves the events of a run that has ended into an archive. On return without
// an error they are there alone, durably. It may be cut short anywhere and
// repeated. A run that is gone meanwhile is success.
func (a *Archive) Move(ctx context.Context, runID string) (int64, error) {
	unlock, err := a.lock(ctx, runID)
	if err != nil {
		return 0, err
	}
	defer unlock()
	n, err := a.move(ctx, runID)
	if errors.Is(err, stromboli.NotFound) {
		return 0, nil
	}
	if err != nil {
		return n, fmt.Errorf("archiving the events of %s: %w", runID, err)
	}
	return n, nil
}

func (a *Archive) move(ctx context.Context, runID string) (int64, error) {
	run, err := a.cfg.Store.FinishedRun(ctx, runID)
	if err != nil {
		return 0, err
	}
	if !run.Archived {
		if err := a.deleteBlob(ctx, run); err != nil { // what was begun before and is not whole
			return 0, err
		}
		arch := stromboli.Archive{RunID: run.ID, Place: a.cfg.Place, Key: newKey(run)}
		if err := a.cfg.Store.BeginArchive(ctx, arch); err != nil {
			return 0, err
		}
		if err := a.write(ctx, run, &arch); err != nil {
			return 0, err
		}
		if err := a.cfg.Store.EndArchive(ctx, arch); err != nil {
			return 0, err
		}
		run.ArchiveBytes = arch.Bytes
	}
	return run.ArchiveBytes, a.cfg.Store.DeleteArchivedEvents(ctx, run.ID)
}

func (a *Archive) write(ctx context.Context, run stromboli.FinishedRun, arch *stromboli.Archive) error {
	b, err := a.bucket(arch.Place)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	src, err := newPacker(ctx, a.cfg.Store, run)
	if err != nil {
		return err
	}
	arch.Bytes, err = b.Put(ctx, arch.Key, src)
	if src.err != nil && !errors.Is(src.err, io.EOF) { // it is not the bucket's fault
		return src.err
	}
	if err := a.told(ctx, err); err != nil {
		return err
	}
	arch.Frames = src.frames
	return nil
}

func (a *Archive) deleteBlob(ctx context.Context, run stromboli.FinishedRun) error {
	if run.ArchiveKey == "" || strings.HasPrefix(run.ArchivePlace, stromboli.SharedArchive) {
		return nil
	}
	b, err := a.bucket(run.ArchivePlace)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return a.told(ctx, down(b.Delete(ctx, run.ArchiveKey)))
}

// down tells callers that a bucket doesn't answer, where its error says nothing
// else to them.
func down(err error) error {
	if _, coded := errors.AsType[*stromboli.Error](err); err == nil || coded || errors.Is(err, context.Canceled) {
		return err
	}
	e := stromboli.Errorf(stromboli.ArchiveDown, "the archive of finished runs' events doesn't answer: try again later").WithCause(err)
	e.RetryAfter = retryAfter
	return e
}

// Drop deletes a run's archive and leaves the run, whose events are then gone.
func (a *Archive) Drop(ctx context.Context, runID string) error {
	return a.change(ctx, "deleting the archive of", runID, func(run stromboli.FinishedRun) error {
		if !run.Archived {
			return nil
		}
		if err := a.cfg.Store.DeleteArchivedEvents(ctx, run.ID); err != nil {
			return err
		}
		if err := a.deleteBlob(ctx, run); err != nil {
			return err
		}
		return a.cfg.Store.ForgetArchive(ctx, run.ID)
	})
}

// DeleteRun deletes a run that has ended with all that belongs to it: its archive
// first.
func (a *Archive) DeleteRun(ctx context.Context, runID string) error {
	return a.change(ctx, "deleting", runID, func(run stromboli.FinishedRun) error {
		if err := a.deleteBlob(ctx, run); err != nil {
			return err
		}
		return a.cfg.Store.DeleteRun(ctx, run.ID)
	})
}

// change does something to a run as it is when nobody else changes its archive. A
// run that is gone is success.
func (a *Archive) change(ctx context.Context, doing, runID string, do func(stromboli.FinishedRun) error) error {
	unlock, err := a.lock(ctx, runID)
	if err != nil {
		return err
	}
	defer unlock()
	run, err := a.cfg.Store.FinishedRun(ctx, runID)
	if err == nil {
		err = do(run)
	}
	if err != nil && !errors.Is(err, stromboli.NotFound) {
		return fmt.Errorf("%s %s: %w", doing, runID, err)
	}
	return nil
}

// DeleteSession deletes the archives of a session that is being deleted. None is
// made for it any more.
func (a *Archive) DeleteSession(ctx context.Context, sessionID string) error {
	runs, err := a.cfg.Store.ArchivesOfSession(ctx, sessionID)
	if err != nil {
		return err
	}
	for _, run := range runs {
		unlock, err := a.lock(ctx, run.ID)
		if err != nil {
			return err
		}
		err = a.deleteBlob(ctx, run)
		unlock()
		if err != nil {
			return fmt.Errorf("deleting the archive of %s: %w", run.ID, err)
		}
	}
	return nil
}
