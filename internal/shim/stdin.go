package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// stdinQueue bounds the frames that wait while the agent doesn't read.
const stdinQueue = 16

// stdinWriter writes frames to the agent's stdin, each id once and in order,
// and records each in the spool before it is answered. It writes in a
// goroutine of its own, since the agent may not be reading.
type stdinWriter struct {
	w     io.WriteCloser
	spool *spool

	mu     sync.Mutex
	wake   sync.Cond
	queue  []*stdinFrame
	last   uint64 // newest id accepted
	done   uint64 // newest id written and recorded
	closed bool   // close when the queue is empty
	over   bool   // nothing is written any more
}

// stdinFrame is one frame on its way; ready is closed when err tells how it
// ended.
type stdinFrame struct {
	id    uint64
	data  []byte
	ready chan struct{}
	err   error
}

func newStdinWriter(w io.WriteCloser, s *spool) *stdinWriter {
	sw := &stdinWriter{w: w, spool: s}
	sw.wake.L = &sw.mu
	return sw
}

func (s *stdinWriter) lastDone() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

var errStdinClosed = remotef(CodeStdinClosed, "the agent's stdin is closed")

// put accepts a frame; an id that was written before is success at once, one
// that is on its way is waited for. It returns nil when there is nothing to
// wait for.
func (s *stdinWriter) put(id uint64, data []byte) (*stdinFrame, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id <= s.done {
		return nil, nil
	}
	for _, f := range s.queue {
		if f.id == id {
			return f, nil
		}
	}
	switch {
	case s.over || s.closed:
		return nil, errStdinClosed
	case id != s.last+1:
		return nil, remotef(CodeInvalid, "stdin frame %d after %d", id, s.last)
	case len(s.queue) >= stdinQueue:
		return nil, remotef(CodeBusy, "the agent doesn't read its stdin")
	}
	f := &stdinFrame{id: id, data: data, ready: make(chan struct{})}
	s.last = id
	s.queue = append(s.queue, f)
	s.wake.Signal()
	return f, nil
}

// close closes the agent's stdin after what is queued; again is success.
func (s *stdinWriter) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wake.Signal()
}

// abandon ends the writer; what is queued is answered with an error.
func (s *stdinWriter) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		_ = s.w.Close() // a blocked write returns
	}
	s.wake.Signal()
}

// run writes until the stdin is closed or the agent stops reading.
func (s *stdinWriter) run() {
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed && !s.over {
			s.wake.Wait()
		}
		if s.over || len(s.queue) == 0 {
			s.finish()
			s.mu.Unlock()
			return
		}
		f := s.queue[0]
		s.mu.Unlock()

		err := s.write(f)
		s.mu.Lock()
		s.queue = s.queue[1:]
		if err == nil {
			s.done = f.id
		} else {
			s.over = true
			_ = s.w.Close()
		}
		f.err = err
		close(f.ready)
		s.mu.Unlock()
	}
}

// finish closes and answers; mu is held.
func (s *stdinWriter) finish() {
	if !s.over {
		s.over = true
		_ = s.w.Close()
	}
	for _, f := range s.queue {
		f.err = errStdinClosed
		close(f.ready)
	}
	s.queue = nil
}

func (s *stdinWriter) write(f *stdinFrame) error {
	if _, err := s.w.Write(f.data); err != nil {
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, os.ErrClosed) {
			return errStdinClosed
		}
		return fmt.Errorf("write to the agent's stdin: %w", err)
	}
	b, err := json.Marshal(StdinWritten{ID: f.id, Bytes: len(f.data)})
	if err != nil {
		return err
	}
	_, err = s.spool.append(appendRecord(nil, time.Now(), StdinRecord, b, 0), true)
	return err
}
