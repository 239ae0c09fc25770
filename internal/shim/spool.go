package shim

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spool keeps the lines that the server has not acknowledged: one append-only
// file of records, freed from the front by punching holes. It lies on a tmpfs,
// so it is as durable as the sandbox and needs no fsync.
type spool struct {
	f     *os.File
	limit int64

	mu     sync.Mutex
	space  sync.Cond // signalled when lines were trimmed, or the spool closed
	start  int64     // the file's bytes below this are freed
	end    int64     // offset of the next record
	last   int64     // sequence of the newest record
	acked  int64     // sequence of the newest acknowledged record
	marks  []mark    // places of some records, ascending; the first is the oldest kept
	subs   map[chan struct{}]struct{}
	closed bool
}

// mark is the place of one record. There is one every markEvery bytes: enough
// to find any record with little reading, whatever the lines' length.
type mark struct{ seq, off int64 }

const (
	markEvery = 64 << 10
	// spoolReserve is room above the limit for the shim's own short records,
	// so that a full spool holds up the agent but not its end.
	spoolReserve = 1 << 20
)

var errSpoolClosed = errors.New("spool is closed")

func newSpool(path string, limit int64) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	s := &spool{f: f, limit: limit, marks: []mark{{seq: 1}}, subs: map[chan struct{}]struct{}{}}
	s.space.L = &s.mu
	return s, nil
}

// close ends all waiting appends.
func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.space.Broadcast()
	return s.f.Close()
}

// append numbers the records in b and writes them. It blocks while the spool
// is full; urgent records may use the reserve. It returns the last sequence.
func (s *spool) append(b []byte, urgent bool) (int64, error) {
	limit := s.limit
	if urgent {
		limit += spoolReserve
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return 0, errSpoolClosed
		}
		if s.end-s.start+int64(len(b)) > limit && s.acked < s.last {
			s.space.Wait()
			continue
		}
		last, marks := s.number(b)
		if _, err := s.f.WriteAt(b, s.end); err != nil {
			if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
				return 0, fmt.Errorf("write spool: %w", err)
			}
			// Less room than we were promised: wait as if full, and look again
			// now and then, since what fills it may not be ours.
			wake := time.AfterFunc(time.Second, s.space.Broadcast)
			s.space.Wait()
			wake.Stop()
			continue
		}
		s.end += int64(len(b))
		s.last = last
		s.marks = append(s.marks, marks...)
		for c := range s.subs {
			select {
			case c <- struct{}{}:
			default:
			}
		}
		return last, nil
	}
}

// number gives the records in b their sequences.
func (s *spool) number(b []byte) (last int64, marks []mark) {
	last = s.last
	marked := s.marks[len(s.marks)-1].off
	for off := int64(0); off < int64(len(b)); off += recordSize(b[off:]) {
		last++
		setSeq(b[off:], last)
		if s.end+off-marked >= markEvery {
			marked = s.end + off
			marks = append(marks, mark{last, marked})
		}
	}
	return last, marks
}

// subscribe returns a channel that gets a value after every append, and a
// function that ends that.
func (s *spool) subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	s.subs[c] = struct{}{}
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		delete(s.subs, c)
		s.mu.Unlock()
	}
}

// bounds returns the sequences of the oldest line that is not acknowledged and
// of the newest line.
func (s *spool) bounds() (first, last int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked + 1, s.last
}

// ack frees the lines up to seq, in pages and as far as a mark tells where
// they end.
func (s *spool) ack(seq int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq = min(seq, s.last)
	if seq <= s.acked || s.closed {
		return nil
	}
	s.acked = seq
	if seq == s.last {
		s.marks = append(s.marks[:0], mark{seq + 1, s.end})
	} else {
		keep := sort.Search(len(s.marks), func(i int) bool { return s.marks[i].seq > seq+1 }) - 1
		s.marks = append(s.marks[:0], s.marks[keep:]...)
	}
	const page = 4096
	free := s.marks[0].off &^ (page - 1)
	if free <= s.start {
		return nil
	}
	err := unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.start, free-s.start)
	if err != nil {
		return fmt.Errorf("trim spool: %w", err)
	}
	s.start = free
	s.space.Broadcast()
	return nil
}

// cursor is a reader's position: the record to be read next.
type cursor struct{ seq, off int64 }

// seek returns the position of the first kept record above after.
func (s *spool) seek(after int64) (cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after = min(max(after, 0), s.last)
	i := max(sort.Search(len(s.marks), func(i int) bool { return s.marks[i].seq > after+1 })-1, 0)
	c := cursor(s.marks[i])
	var h [recordHeader]byte
	for c.seq <= after {
		if _, err := s.f.ReadAt(h[:], c.off); err != nil {
			return c, fmt.Errorf("read spool: %w", err)
		}
		c.seq++
		c.off += recordSize(h[:])
	}
	return c, nil
}

// read appends whole records at c to buf, about max bytes but at least one
// record if there is any, and moves c on. If records at c were trimmed it goes
// on with the oldest kept one.
func (s *spool) read(buf []byte, c *cursor, max int64) ([]byte, error) {
	for {
		s.mu.Lock()
		oldest, end := s.marks[0], s.end
		s.mu.Unlock()
		if c.off < oldest.off {
			*c = cursor(oldest)
		}
		if c.off >= end {
			return buf, nil
		}
		want := min(end-c.off, max)
		head := len(buf)
		got, err := s.readAt(buf, c.off, want)
		if err != nil {
			return buf, err
		}
		n, last := wholeRecords(got[head:])
		if n == 0 { // one record, longer than max
			if got, err = s.readAt(buf, c.off, recordSize(got[head:])); err != nil {
				return buf, err
			}
			n, last = wholeRecords(got[head:])
		}
		// What was trimmed while we read came back as zeros.
		s.mu.Lock()
		trimmed := c.off < s.marks[0].off
		s.mu.Unlock()
		if trimmed {
			continue
		}
		if n == 0 {
			return buf, errRecord
		}
		c.seq, c.off = last+1, c.off+int64(n)
		return got[:head+n], nil
	}
}

// readAt appends n bytes of the file to buf.
func (s *spool) readAt(buf []byte, off, n int64) ([]byte, error) {
	head := len(buf)
	n = min(n, recordHeader+maxLine)
	if need := head + int(n); cap(buf) < need {
		buf = append(make([]byte, 0, need), buf...)
	}
	buf = buf[:head+int(n)]
	if _, err := s.f.ReadAt(buf[head:], off); err != nil {
		return nil, fmt.Errorf("read spool: %w", err)
	}
	return buf, nil
}
