package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
)

// What the log records of itself.
const (
	ActionRepaired = "audit.repaired" // a cut end was taken away: bytes, sha256
	ActionPruned   = "audit.pruned"   // old files were deleted: through, hash
)

// The states of an op. Whoever changes opQueued decides: the writer writes it, or
// its caller has gone away and it never happens.
const (
	opQueued int32 = iota
	opTaken
	opAbandoned
)

// op is one record on its way through the writer.
type op struct {
	record stromboli.AuditRecord
	// owes is 1 for an intent, whose outcome will need room, and -1 for that.
	owes  int
	state atomic.Int32
	seq   uint64 // set before done is closed, as err
	err   error
	done  chan struct{}
}

func (l *Log) submit(ctx context.Context, o *op) (uint64, error) {
	o.done = make(chan struct{})
	o.record.At = l.cfg.Now()
	o.record = bounded(o.record)
	select {
	case <-l.quit:
		return 0, ErrClosed
	default:
	}
	select {
	case l.ops <- o:
	case <-l.quit:
		return 0, ErrClosed
	case <-ctx.Done():
		return 0, fmt.Errorf("audit: %w", ctx.Err())
	}
	select {
	case <-o.done:
		return o.seq, o.err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opQueued, opAbandoned) {
			return 0, fmt.Errorf("audit: %w", ctx.Err())
		}
	case <-l.stopped:
		if o.state.CompareAndSwap(opQueued, opAbandoned) {
			return 0, ErrClosed
		}
	}
	<-o.done
	return o.seq, o.err
}

// probeEvery is how often a log that can't be written is tried.
const probeEvery = time.Second

// write is the goroutine that owns the file. What gathers during one flush is
// written by the next one together.
func (l *Log) write() {
	defer close(l.stopped)
	tick := time.NewTicker(tellHead)
	defer tick.Stop()
	told := l.Head()
	for {
		var again <-chan time.Time
		if l.fault.Load() != nil {
			again = time.After(probeEvery)
		}
		select {
		case o := <-l.ops:
			l.commit(l.gather(o))
		case <-again:
			l.probe()
		case <-tick.C:
			if now := l.Head(); now != told {
				told = now
				l.tell("audit log")
			}
		case <-l.quit:
			for batch := l.gather(nil); len(batch) > 0; batch = l.gather(nil) {
				l.commit(batch)
			}
			return
		}
	}
}

func (l *Log) gather(first *op) []*op {
	var batch []*op
	take := func(o *op) {
		if o != nil && o.state.CompareAndSwap(opQueued, opTaken) {
			batch = append(batch, o)
		}
	}
	take(first)
	for len(batch) < maxBatch {
		select {
		case o := <-l.ops:
			take(o)
		default:
			return batch
		}
	}
	return batch
}

// commit writes a batch and answers it. When it can't be written as a whole,
// each record is tried by itself: an outcome's room is there.
func (l *Log) commit(batch []*op) {
	if err := l.rotate(); err != nil {
		l.cfg.Log.Warn("the audit log can't begin its next file and goes on in this one", "error", err)
	}
	err := l.try(batch)
	if err != nil && len(batch) > 1 {
		err = nil
		for _, o := range batch {
			if o.err = nil; l.try([]*op{o}) != nil {
				err = o.err
			}
		}
	}
	if err != nil {
		l.fault.Store(&err)
		l.cfg.Log.Error("the audit log can't be written", "error", err)
	} else {
		l.fault.Store(nil)
	}
	for _, o := range batch {
		if o.owes < 0 {
			l.writing.owed-- // its room was kept for it alone
		}
		close(o.done)
	}
}

// probe finds out whether a fault has passed: nothing else would, where those who
// act are sent elsewhere because of it.
func (l *Log) probe() {
	w := &l.writing
	err := w.clean()
	if err == nil {
		err = w.reserve(w.size + int64(w.owed+2)*maxLine)
	}
	if err == nil {
		err = flush(w.f)
	}
	if err == nil {
		l.fault.Store(nil)
		l.cfg.Log.Info("the audit log can be written again")
	}
}

// try writes a batch. An error is that of an op too, and nothing of the batch is
// on the disk; without one each op has its number.
func (l *Log) try(batch []*op) (err error) {
	w := &l.writing
	defer func() {
		if err == nil {
			return
		}
		err = classify(err)
		for _, o := range batch {
			o.seq, o.err = 0, err
		}
	}()
	if err := w.clean(); err != nil {
		return err
	}
	var data []byte
	at, owed := Head{w.last, w.hash}, w.owed
	for _, o := range batch {
		if o.owes >= 0 {
			if err := w.reserve(w.size + int64(len(data)) + int64(owed+1+o.owes)*maxLine); err != nil {
				return err
			}
		}
		o.record.Seq, o.record.Prev = at.Seq+1, at.Hash
		line, hash, err := encode(o.record)
		if err == nil && len(line) > maxLine {
			err = fmt.Errorf("a record of %d bytes", len(line))
		}
		if err != nil {
			return err
		}
		data = append(data, line...)
		at = Head{o.record.Seq, hash}
		o.seq = at.Seq
		owed += max(0, o.owes)
	}
	if err := w.put(data, l.head, at); err != nil {
		return err
	}
	if w.first == 0 {
		w.first, w.began = batch[0].seq, batch[0].record.At
	}
	w.owed = owed
	l.last.Store(&at)
	return nil
}

// writerState is the file that is appended to. The writer's alone.
type writerState struct {
	path  string
	f     *os.File
	last  uint64 // number and hash of the newest record
	hash  string
	first uint64 // of this file's first record, and when it was made; 0: it is empty
	began time.Time

	size      int64 // bytes of whole records
	allocated int64 // the file's room on the disk reaches to here
	owed      int   // outcomes whose room is reserved
	dirty     bool  // what lies beyond size is to be taken away
	noRoom    bool  // this file system reserves none
}

func (w *writerState) close() error {
	if w.f == nil {
		return nil
	}
	return errors.Join(w.f.Truncate(w.size), w.f.Sync(), w.f.Close()) // gives the reserved room back
}

// clean takes away what a failed write has left.
func (w *writerState) clean() error {
	if !w.dirty {
		return nil
	}
	if err := w.f.Truncate(w.size); err != nil {
		return err
	}
	w.dirty, w.allocated = false, w.size
	return w.reserve(w.size + int64(w.owed)*maxLine)
}

// put writes lines and the head that they make, both or neither.
func (w *writerState) put(data []byte, head *os.File, at Head) error {
	_, err := w.f.WriteAt(data, w.size)
	if err == nil {
		err = flush(w.f)
	}
	if err == nil {
		err = at.write(head)
	}
	if err != nil {
		w.dirty = true
		// Now, or before the next write at the latest.
		if undo := w.clean(); undo != nil && !full(undo) {
			err = errors.Join(err, undo)
		}
		return err
	}
	w.last, w.hash, w.size = at.Seq, at.Hash, w.size+int64(len(data))
	w.allocated = max(w.allocated, w.size)
	return nil
}

func flush(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// More room is taken at a time than is asked for, where there is some.
const roomStep = 256 << 10

// keepSize is FALLOC_FL_KEEP_SIZE: the file isn't longer for it.
const keepSize = 1

// reserve makes the file's room on the disk reach to an offset.
func (w *writerState) reserve(to int64) error {
	if w.noRoom || to <= w.allocated {
		return nil
	}
	var err error
	for _, end := range []int64{to + roomStep, to} {
		for {
			if err = syscall.Fallocate(int(w.f.Fd()), keepSize, w.size, end-w.size); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		switch {
		case err == nil:
			w.allocated = end
			return nil
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			w.noRoom = true
			return nil
		}
	}
	return err
}

func nextPath(path string) string { return path + ".next" }

// rotate begins the next file when this one is full or old. On an error this one
// goes on.
func (l *Log) rotate() error {
	w := &l.writing
	if w.size == 0 || w.dirty || (w.size < l.cfg.MaxSize && l.cfg.Now().Sub(w.began) < l.cfg.MaxAge) {
		return nil
	}
	f, err := os.OpenFile(nextPath(w.path), os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	next := writerState{path: w.path, f: f, last: w.last, hash: w.hash, owed: w.owed, noRoom: w.noRoom}
	if err := next.reserve(int64(w.owed+1) * maxLine); err != nil {
		return joinClose(err, f)
	}
	if err := errors.Join(w.f.Truncate(w.size), w.f.Sync()); err != nil {
		return joinClose(err, f)
	}
	w.allocated = w.size
	named := fullPath(w.path, w.first)
	l.names.Lock()
	defer l.names.Unlock()
	if err := os.Rename(w.path, named); err != nil {
		return joinClose(err, f)
	}
	if err := os.Rename(nextPath(w.path), w.path); err != nil {
		return joinClose(errors.Join(err, os.Rename(named, w.path)), f)
	}
	old := w.f
	*w = next
	l.tell("audit log: the next file is begun")
	return errors.Join(syncDir(filepath.Dir(w.path)), old.Close())
}

func joinClose(err error, f *os.File) error { return errors.Join(err, f.Close()) }

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// classify makes an error for callers of why a record couldn't be written.
func classify(err error) error {
	if full(err) {
		return stromboli.Errorf(stromboli.StorageFull, "the disk that holds the audit log is full, and nothing is done that can't be recorded").WithCause(err)
	}
	return stromboli.Errorf(stromboli.AuditUnavailable, "the audit log can't be written, and nothing is done that can't be recorded").WithCause(err)
}
