package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Prune deletes the full files whose records were all made before a time, oldest
// first, and returns how many it deleted. First a record is appended that holds number and hash of the last
// record that goes, so that the rest can still be verified; durable on return.
// It may be cut short and repeated.
func (l *Log) Prune(ctx context.Context, before time.Time) (int, error) {
	l.pruning.Lock()
	defer l.pruning.Unlock()
	all, anchor, err := l.old(before)
	if err != nil {
		return 0, fmt.Errorf("audit: prune: %w", err)
	}
	if len(all) == 0 {
		return 0, nil
	}
	_, err = l.Append(ctx, stromboli.AuditRecord{Action: ActionPruned, Outcome: stromboli.AuditOK, Detail: map[string]string{
		"through": strconv.FormatUint(anchor.Seq, 10), "hash": anchor.Hash,
	}})
	if err != nil {
		return 0, fmt.Errorf("audit: prune: %w", err)
	}
	l.names.Lock()
	defer l.names.Unlock()
	for i, s := range all {
		if err := os.Remove(s.path); err != nil && !missing(err) {
			return i, fmt.Errorf("audit: prune: %w", err)
		}
	}
	return len(all), syncDir(filepath.Dir(l.cfg.Path))
}

// Prunable counts what Prune would delete.
func (l *Log) Prunable(before time.Time) (int, error) {
	l.pruning.Lock()
	defer l.pruning.Unlock()
	all, _, err := l.old(before)
	if err != nil {
		return 0, fmt.Errorf("audit: look for old files: %w", err)
	}
	return len(all), nil
}

// old are the full files whose records were all made before a time, and the last
// of those records.
func (l *Log) old(before time.Time) ([]segment, Head, error) {
	var anchor Head
	all, err := segments(l.cfg.Path)
	if err != nil {
		return nil, anchor, err
	}
	n := 0
	for n+1 < len(all) && all[n].first > 0 {
		last, err := newest(all[n])
		if err != nil {
			return nil, anchor, err
		}
		if !last.At.Before(before) {
			break
		}
		anchor = Head{last.Seq, last.Hash}
		n++
	}
	return all[:n], anchor, nil
}

// newest is the last record of a full file.
func newest(s segment) (stromboli.AuditRecord, error) {
	var last stromboli.AuditRecord
	f, err := openSegment(s.path)
	if err != nil {
		return last, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return last, err
	}
	from := max(0, fi.Size()-2*maxLine)
	err = lines(io.NewSectionReader(f, from, fi.Size()-from), from, func(line []byte, _ int64, whole bool) bool {
		if r, err := decode(line); whole && err == nil {
			last = r
		}
		return true
	})
	if err == nil && last.Seq == 0 {
		err = errors.New("its last line is no record")
	}
	if err != nil {
		return last, fmt.Errorf("%s: %w", filepath.Base(s.path), err)
	}
	return last, nil
}
