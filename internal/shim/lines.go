package shim

import (
	"bytes"
	"io"
	"time"
)

const (
	readChunk = 64 << 10
	batchMax  = 256 << 10
	keepMax   = 256 << 10 // a longer line's buffer is not kept for the next
)

// lineReader cuts one stream of the agent's into lines and spools them. It
// reads on only when the spool has taken what was read, so a full spool makes
// the agent wait. It holds at most one line and one batch.
type lineReader struct {
	src    io.Reader
	stream Stream
	limit  int
	put    func(records []byte) error
	now    func() time.Time

	partial []byte // the beginning of a line whose end has not been read
	open    bool   // such a line exists, be it empty so far
	dropped int64  // bytes of it beyond the limit
	batch   []byte
}

// run reads to the end of the stream; it returns the first error of either
// side other than EOF.
func (r *lineReader) run() error {
	chunk := make([]byte, readChunk)
	for {
		n, err := r.src.Read(chunk)
		if n > 0 {
			if err := r.take(chunk[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			if r.open {
				r.record(r.now(), nil)
			}
			if ferr := r.flush(); ferr != nil {
				return ferr
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

func (r *lineReader) take(b []byte) error {
	at := r.now()
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			r.hold(b)
			break
		}
		r.record(at, b[:i])
		b = b[i+1:]
		if len(r.batch) >= batchMax {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return r.flush()
}

// hold keeps a part of a line, as far as it is within the limit.
func (r *lineReader) hold(b []byte) {
	r.open = true
	room := max(r.limit-len(r.partial), 0)
	keep := min(room, len(b))
	r.partial = append(r.partial, b[:keep]...)
	r.dropped += int64(len(b) - keep)
}

// record ends a line with b.
func (r *lineReader) record(at time.Time, b []byte) {
	if !r.open && len(b) <= r.limit {
		r.batch = appendRecord(r.batch, at, r.stream, b, 0)
		return
	}
	r.hold(b)
	r.batch = appendRecord(r.batch, at, r.stream, r.partial, r.dropped)
	r.partial, r.dropped, r.open = shrink(r.partial), 0, false
}

func (r *lineReader) flush() error {
	if len(r.batch) == 0 {
		return nil
	}
	err := r.put(r.batch)
	r.batch = shrink(r.batch)
	return err
}

// shrink empties b, and lets go of it if it is large.
func shrink(b []byte) []byte {
	if cap(b) > keepMax {
		return nil
	}
	return b[:0]
}
