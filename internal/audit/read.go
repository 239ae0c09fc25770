package audit

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// maxLook bounds what one answer looks at, in bytes.
const maxLook = 8 << 20

// Records returns what a filter selects, oldest first, of what is durable. One
// call looks at 8 MiB of the log at most.
func (l *Log) Records(ctx context.Context, f stromboli.AuditFilter) (stromboli.AuditPage, error) {
	page := stromboli.AuditPage{Next: f.After}
	head := l.Head()
	left := int64(maxLook)
	for page.Next < head.Seq && left > 0 && len(page.Records) < f.Limit {
		if err := ctx.Err(); err != nil {
			return page, fmt.Errorf("audit: read: %w", err)
		}
		before := page.Next
		if err := l.readFile(f, head, &page, &left); err != nil {
			return page, fmt.Errorf("audit: read: %w", err)
		}
		if page.Next == before {
			break // nothing more can be read: Verify tells why
		}
	}
	page.More = page.Next < head.Seq && (left <= 0 || len(page.Records) >= f.Limit)
	return page, nil
}

// readFile reads on in the file that holds the record after page.Next.
func (l *Log) readFile(f stromboli.AuditFilter, head Head, page *stromboli.AuditPage, left *int64) error {
	file, skip, err := l.find(page.Next+1, f.Since)
	if err != nil || file == nil {
		page.Next = max(page.Next, skip)
		return err
	}
	defer func() { _ = file.Close() }()
	from, err := seek(file, page.Next+1)
	if err != nil {
		return err
	}
	return lines(io.NewSectionReader(file, from, math.MaxInt64-from), from, func(line []byte, _ int64, whole bool) bool {
		*left -= int64(len(line)) + 1
		r, err := decode(line)
		if !whole || err != nil || r.Seq > head.Seq {
			return false
		}
		if r.Seq > page.Next {
			page.Next = r.Seq
			if matches(r, f) {
				page.Records = append(page.Records, r)
			}
		}
		return *left > 0 && len(page.Records) < f.Limit
	})
}

// find opens the file that holds a record, or the next one where that was pruned. A
// file that was last written before since is passed over: skip is the number of its last
// record.
func (l *Log) find(seq uint64, since time.Time) (f *os.File, skip uint64, err error) {
	l.names.RLock()
	defer l.names.RUnlock()
	all, err := segments(l.cfg.Path)
	if err != nil || len(all) == 0 {
		return nil, 0, err
	}
	i := 0
	for i+1 < len(all) && all[i+1].first > 0 && all[i+1].first <= seq {
		i++
	}
	if all[i].first > 0 {
		fi, err := os.Stat(all[i].path)
		if err != nil {
			return nil, 0, err
		}
		last, err := newest(all[i])
		switch {
		case err != nil:
			return nil, 0, err
		case last.Seq < seq && i+1 < len(all): // it is in the one that is appended to
			i++
		case fi.ModTime().Add(time.Second).Before(since):
			return nil, last.Seq, nil
		}
	}
	f, err = openSegment(all[i].path)
	return f, 0, err
}

func matches(r stromboli.AuditRecord, f stromboli.AuditFilter) bool {
	switch {
	case r.Tenant == "" && !f.Server, r.Tenant != "" && r.Tenant != f.Tenant:
		return false
	case !f.Since.IsZero() && r.At.Before(f.Since), !f.Until.IsZero() && !r.At.Before(f.Until):
		return false
	case f.Principal != "" && r.Principal != f.Principal && r.Client != f.Principal:
		return false
	case f.Object != "" && r.Object != f.Object:
		return false
	case strings.HasSuffix(f.Action, "."):
		return strings.HasPrefix(r.Action, f.Action)
	}
	return f.Action == "" || r.Action == f.Action
}
