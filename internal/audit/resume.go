package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/tomblancdev/stromboli"
)

// resume finds where the log ends and makes it ready to be written on. What was
// cut short is taken away; the record that says so is returned.
func (l *Log) resume() (*stromboli.AuditRecord, error) {
	w := &l.writing
	w.path = l.cfg.Path
	head, err := readHead(l.head)
	if err != nil {
		return nil, &DamagedError{Fault{File: filepath.Base(headPath(w.path)), What: err.Error()}}
	}
	if err := os.Remove(nextPath(w.path)); err != nil && !missing(err) {
		return nil, err // of a file that was to be begun
	}
	last, err := l.end(head)
	if err != nil {
		return nil, err
	}
	w.last, w.hash = last.seq, last.hash
	w.f, err = os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	w.size, w.first, w.began = last.active.end, last.active.first.Seq, last.active.began
	w.allocated = w.size
	torn, err := l.repair(last.active)
	if err == nil {
		err = syncDir(filepath.Dir(w.path))
	}
	if err == nil {
		err = (Head{w.last, w.hash}).write(l.head)
		if err == nil {
			err = l.head.Sync()
		}
		if full(err) {
			l.cfg.Log.Warn("the audit log's head can't be written while the disk is full", "error", err)
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w", joinClose(err, w.f))
	}
	l.last.Store(&Head{w.last, w.hash})
	return torn, nil
}

// ending is where a log ends.
type ending struct {
	seq    uint64
	hash   string
	active found // of the file that is appended to, which may be missing
}

// end looks at the last files, back to one that holds a record.
func (l *Log) end(head Head) (ending, error) {
	out := ending{hash: noHash}
	all, err := segments(l.cfg.Path)
	if err != nil {
		return out, err
	}
	damaged := func(name, what string) error { return &DamagedError{Fault{File: name, What: what}} }
	var later *found // the file after the one that is looked at
	for i := len(all) - 1; i >= 0; i-- {
		s := all[i]
		got, err := scan(s, head)
		if err != nil {
			return out, err
		}
		if got.fault != nil && (s.first != 0 || !got.torn) {
			return out, &DamagedError{*got.fault}
		}
		if s.first == 0 {
			out.active = got
		}
		if got.last.Seq == 0 {
			continue
		}
		name := filepath.Base(s.path)
		if later == nil {
			out.seq, out.hash = got.last.Seq, got.last.Hash
			if got.last.Seq < head.Seq {
				return out, damaged(name, fmt.Sprintf("it ends with record %d, but record %d was written", got.last.Seq, head.Seq))
			}
			if head == (Head{}) {
				return out, damaged(filepath.Base(headPath(l.cfg.Path)), "it names no record, but there are some")
			}
		}
		if got.head != "" && got.head != head.Hash {
			return out, &DamagedError{Fault{File: name, Seq: head.Seq, What: "it is another record than was written"}}
		}
		if head.Seq >= got.first.Seq-1 {
			if head.Seq == got.first.Seq-1 && head.Hash != got.prev {
				return out, &DamagedError{Fault{File: name, Seq: got.first.Seq, What: "the record before it is another than was written"}}
			}
			return out, nil
		}
		later = &got
	}
	if head.Seq > 0 && out.seq == 0 {
		return out, damaged(filepath.Base(l.cfg.Path), fmt.Sprintf("records up to %d were written, and there are none", head.Seq))
	}
	return out, nil
}

// repair takes away what a write that was cut short has left.
func (l *Log) repair(active found) (*stromboli.AuditRecord, error) {
	w := &l.writing
	if active.size <= active.end {
		return nil, nil //nolint:nilnil // nothing to tell
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(w.f, active.end, active.size-active.end)); err != nil {
		return nil, err
	}
	if err := w.f.Truncate(active.end); err != nil {
		return nil, err
	}
	if err := w.f.Sync(); err != nil {
		return nil, err
	}
	l.cfg.Log.Warn("the audit log's end was cut short and has been repaired", "bytes", active.size-active.end)
	return &stromboli.AuditRecord{Action: ActionRepaired, Outcome: stromboli.AuditOK, Detail: map[string]string{
		"bytes": strconv.FormatInt(active.size-active.end, 10), "sha256": hex.EncodeToString(sum.Sum(nil)),
	}}, nil
}
