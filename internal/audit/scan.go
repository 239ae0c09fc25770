package audit

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Fault is one place where the log isn't what was written.
type Fault struct {
	File   string // name, without its directory
	Offset int64  // of the line, in bytes
	Seq    uint64 // of the record; 0: the line is none
	What   string
}

func (f Fault) String() string {
	at := ""
	if f.File != "" {
		at = fmt.Sprintf("%s, byte %d: ", f.File, f.Offset)
	}
	if f.Seq > 0 {
		return fmt.Sprintf("%srecord %d: %s", at, f.Seq, f.What)
	}
	return at + f.What
}

// chain follows records and tells what breaks their order.
type chain struct {
	last Head // Hash is empty after a line that is no record
}

// add takes the next record; what is not empty tells why it can't be the next.
func (c *chain) add(r stromboli.AuditRecord) (what string) {
	switch want := c.last.Seq + 1; {
	case r.Seq > want && r.Seq-want == 1:
		what = fmt.Sprintf("record %d is missing before it", want)
	case r.Seq > want:
		what = fmt.Sprintf("records %d to %d are missing before it", want, r.Seq-1)
	case r.Seq < want:
		what = fmt.Sprintf("it stands where record %d should be", want)
	case c.last.Hash != "" && r.Prev != c.last.Hash:
		what = "the record before it is another than when it was written"
	}
	c.last = Head{r.Seq, r.Hash}
	return what
}

// found is what a scan of one file has found.
type found struct {
	first, last Head
	prev        string    // of the first record
	began       time.Time // when the first record was made
	end         int64     // of the last whole record
	size        int64
	torn        bool // what follows was being written when a process was killed
	fault       *Fault
	head        string // hash of the record that has the head's number; empty: not here
}

// scan reads one file from its beginning and stops at the first line that isn't
// the next record.
func scan(s segment, head Head) (found, error) {
	var out found
	f, err := openSegment(s.path)
	if err != nil {
		return out, err
	}
	defer func() { _ = f.Close() }()
	name := filepath.Base(s.path)
	var c chain
	err = lines(f, 0, func(line []byte, at int64, whole bool) bool {
		r, err := decode(line)
		switch {
		case !whole:
			out.fault = &Fault{File: name, Offset: at, What: "the last line is incomplete"}
			return false
		case err != nil:
			out.fault = &Fault{File: name, Offset: at, What: "a line is changed: " + err.Error()}
			return false
		}
		if out.first.Seq == 0 {
			c.last = Head{r.Seq - 1, r.Prev}
			out.first, out.prev, out.began = Head{r.Seq, r.Hash}, r.Prev, r.At
		}
		if what := c.add(r); what != "" {
			out.fault = &Fault{File: name, Offset: at, Seq: r.Seq, What: what}
			return false
		}
		out.last, out.end = c.last, at+int64(len(line))+1
		if r.Seq == head.Seq {
			out.head = r.Hash
		}
		return true
	})
	if err != nil {
		return out, err
	}
	fi, err := f.Stat()
	if err != nil {
		return out, err
	}
	out.size = fi.Size()
	if out.fault != nil {
		out.torn, err = torn(f, out.end, out.size)
	}
	return out, err
}

// torn reports whether what follows the last whole record looks like a write that
// was cut short: less than a line, or, after a loss of power, blocks that were never written.
func torn(f *os.File, from, size int64) (bool, error) {
	rest, err := io.ReadAll(io.NewSectionReader(f, from, min(size-from, maxBatch*maxLine)))
	if err != nil {
		return false, err
	}
	return len(rest) > 0 && (rest[0] == 0 || !bytes.Contains(rest, []byte("\n"))), nil
}
