package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
)

// maxBatch bounds the writes of one transaction.
const maxBatch = 128

// The states of an op. Whoever changes opQueued decides: the writer carries it
// out, or its caller has gone away and it never happens.
const (
	opQueued int32 = iota
	opTaken
	opAbandoned
)

// op is one write on its way through the writer goroutine.
type op struct {
	doing string
	// do may be called again after a rollback, and then starts from nothing.
	do    func(*tx) error
	state atomic.Int32
	err   error         // set before done is closed
	done  chan struct{} // closed once the outcome is known
	// probe: it only finds out whether a write is possible; wrote: by one that
	// surely reached the disk.
	probe, wrote bool
	// events are those that do stored; told to the hook after the commit.
	events []committed
}

type committed struct {
	runID  string
	events []stromboli.Event
}

// write carries out do in a transaction and returns after its commit. ctx can
// prevent a write that has not begun; one that has begun is waited for, so that
// the caller always knows whether it happened.
func write[T any](ctx context.Context, s *Store, doing string, do func(*tx) (T, error)) (T, error) {
	var result, zero T
	o := &op{doing: doing, done: make(chan struct{})}
	o.do = func(t *tx) (err error) {
		result, err = do(t)
		return err
	}
	if err := s.submit(ctx, o); err != nil {
		return zero, err
	}
	return result, nil
}

func (s *Store) submit(ctx context.Context, o *op) error {
	select {
	case <-s.quit:
		return fmt.Errorf("%s: %w", o.doing, ErrClosed)
	default:
	}
	select {
	case s.ops <- o:
	case <-s.quit:
		return fmt.Errorf("%s: %w", o.doing, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", o.doing, ctx.Err())
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opQueued, opAbandoned) {
			return fmt.Errorf("%s: %w", o.doing, ctx.Err())
		}
	case <-s.stopped:
		if o.state.CompareAndSwap(opQueued, opAbandoned) {
			return fmt.Errorf("%s: %w", o.doing, ErrClosed)
		}
	}
	<-o.done
	return o.err
}

// writer is the goroutine that owns the write connection. It ends after Close,
// when everything that was accepted is done.
func (s *Store) writer(t *tx) {
	defer close(s.stopped)
	defer t.close()
	for {
		select {
		case o := <-s.ops:
			s.runBatch(t, s.gather(o))
		case <-s.quit:
			for batch := s.gather(nil); len(batch) > 0; batch = s.gather(nil) {
				s.runBatch(t, batch)
			}
			return
		}
	}
}

// gather takes what is waiting, first included.
func (s *Store) gather(first *op) []*op {
	var batch []*op
	take := func(o *op) {
		if o != nil && o.state.CompareAndSwap(opQueued, opTaken) {
			batch = append(batch, o)
		}
	}
	take(first)
	for len(batch) < maxBatch {
		select {
		case o := <-s.ops:
			take(o)
		default:
			return batch
		}
	}
	return batch
}

// runBatch commits the ops together. When the transaction as a whole fails,
// each op gets one of its own: a write that can't be done must not take others
// with it.
func (s *Store) runBatch(t *tx, batch []*op) {
	if len(batch) == 0 {
		return
	}
	err := s.tryBatch(t, batch)
	if err == nil {
		s.answer(batch)
		return
	}
	if len(batch) == 1 || errors.Is(s.classify("", err), ErrLocked) {
		for _, o := range batch {
			o.err, o.events = s.classify(o.doing, err), nil
		}
		s.answer(batch)
		return
	}
	for _, o := range batch {
		s.runBatch(t, []*op{o})
	}
}

// tryBatch runs one transaction. An error means that nothing of it is stored;
// an op's own failure is in op.err.
func (s *Store) tryBatch(t *tx, batch []*op) (err error) {
	began := time.Now()
	defer func() { s.account(batch, time.Since(began), err) }()
	if err := t.raw("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, o := range batch {
		if err := s.runOp(t, o); err != nil {
			_ = t.raw("ROLLBACK") // SQLite may have rolled back by itself
			return err
		}
	}
	if err := t.raw("COMMIT"); err != nil {
		_ = t.raw("ROLLBACK")
		return err
	}
	return nil
}

// account remembers how a transaction went, and tells of it. One that only asked
// is told of where it failed.
func (s *Store) account(batch []*op, took time.Duration, err error) {
	err = s.classify("commit", err)
	fault, asked, wrote := err, true, false
	for _, o := range batch {
		asked, wrote = asked && o.probe, wrote || o.wrote
		if fault == nil && errors.Is(o.err, stromboli.StorageFull) {
			fault = o.err // its savepoint alone was rolled back
		}
	}
	s.wrote(fault, wrote)
	if s.committed != nil && (!asked || err != nil) {
		s.committed(took, len(batch), err)
	}
}

// runOp runs one op in a savepoint. An error means that the transaction is gone.
func (s *Store) runOp(t *tx, o *op) error {
	o.err, o.events = nil, nil
	if err := t.raw("SAVEPOINT op"); err != nil {
		return err
	}
	t.events = nil
	if err := o.do(t); err != nil {
		o.err = s.classify(o.doing, err)
		// After a full disk or an I/O error SQLite may have rolled back the
		// whole transaction, and the savepoint with it.
		if back := t.raw("ROLLBACK TO op"); back != nil {
			return err
		}
	} else {
		o.events = t.events
	}
	return t.raw("RELEASE op")
}

// answer tells of the events first, so that a caller who has its answer knows
// that followers were woken.
func (s *Store) answer(batch []*op) {
	hook := s.hook()
	for _, o := range batch {
		if hook != nil {
			for _, c := range o.events {
				hook(c.runID, c.events)
			}
		}
		o.events = nil
		close(o.done)
	}
}

// tx is the writer's connection inside a transaction. Only the writer goroutine
// touches it.
type tx struct {
	ctx    context.Context //nolint:containedctx // the writer's own, never a caller's
	conn   *sql.Conn
	stmts  map[string]*sql.Stmt
	events []committed // of the op that runs
}

func (t *tx) close() {
	for _, st := range t.stmts {
		_ = st.Close()
	}
	_ = t.conn.Close()
}

func (t *tx) raw(query string) error {
	st, err := t.prepare(query)
	if err != nil {
		return err
	}
	_, err = st.ExecContext(t.ctx)
	return err
}

// prepare keeps every statement: their texts are constants of this package.
func (t *tx) prepare(query string) (*sql.Stmt, error) {
	if st, ok := t.stmts[query]; ok {
		return st, nil
	}
	st, err := t.conn.PrepareContext(t.ctx, query)
	if err != nil {
		return nil, err
	}
	t.stmts[query] = st
	return st, nil
}

// exec returns the number of rows that changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	st, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(t.ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// insert returns the new row's key.
func (t *tx) insert(query string, args ...any) (int64, error) {
	st, err := t.prepare(query)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(t.ctx, args...)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// scan reads one row; sql.ErrNoRows where there is none.
func (t *tx) scan(query string, args []any, dest ...any) error {
	st, err := t.prepare(query)
	if err != nil {
		return err
	}
	return st.QueryRowContext(t.ctx, args...).Scan(dest...)
}
