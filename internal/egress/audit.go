package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	auditDir = "audit"
	// maxUnread is how many records of a sandbox may wait to be read; then its
	// new connections wait. At a few hundred bytes each that is some megabytes.
	maxUnread = 16384
	// compactAt is the size in bytes from which a file whose records were mostly
	// read is written anew.
	compactAt = 1 << 20
)

// audit is one sandbox's record of its connections: numbered, kept until it was
// read, in memory and in a file, so that it survives this process. A write is
// not synced: what it is to outlive is a process, and a machine that dies takes
// the sandbox with it.
type audit struct {
	path string

	mu        sync.Mutex
	file      *os.File
	size      int64
	unwritten []byte // what the disk did not take
	lastOpen  int64
	opened    map[int64]stromboli.EgressRecord // connections that have not ended
	last      int64                            // number of the newest record
	unread    []stromboli.EgressRecord
	changed   chan struct{} // closed when a record comes or was read
	removed   bool

	// deliver takes this process's last records once a successor has the file.
	deliver func(open int64, rec stromboli.EgressRecord)
}

// auditLine is one line of the file: the beginning of a connection, or a record
// and, with Open, which connection it ends. Last alone begins a file whose
// earlier records were read. Handover is the last line of a process that goes on
// with its connections while a successor has the file.
type auditLine struct {
	Last   int64                   `json:"last,omitempty"`
	Open   int64                   `json:"open,omitempty"`
	Begins *stromboli.EgressRecord `json:"begins,omitempty"`
	Record *stromboli.EgressRecord `json:"record,omitempty"`

	Handover bool `json:"handover,omitempty"`
}

// openAudit reads what an earlier process left. Connections that were open when
// it died get their records now; those that it goes on with, when they end.
func openAudit(dir, id string) (*audit, error) {
	if err := os.MkdirAll(filepath.Join(dir, auditDir), 0o700); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	a := &audit{path: auditPath(dir, id), opened: map[int64]stromboli.EgressRecord{}, changed: make(chan struct{})}
	var err error
	if a.file, err = os.OpenFile(a.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	handedOver, err := a.load()
	if err != nil {
		_ = a.file.Close()
		return nil, fmt.Errorf("audit: %w", err)
	}
	if !handedOver {
		a.endAll()
	}
	return a, nil
}

// endAll gives connections of a process that is no more their records.
func (a *audit) endAll() {
	a.mu.Lock()
	opened := maps.Clone(a.opened)
	a.mu.Unlock()
	for _, open := range slices.Sorted(maps.Keys(opened)) {
		rec := opened[open]
		rec.Why = "egress ended while the connection was open; its bytes are not known"
		a.end(open, rec)
	}
}

func auditPath(dir, id string) string { return filepath.Join(dir, auditDir, id+".jsonl") }

// load reads the file up to the first line that is torn, and cuts it there: a
// process died while it wrote.
func (a *audit) load() (handedOver bool, err error) {
	data, err := os.ReadFile(a.path)
	if err != nil {
		return false, err //nolint:wrapcheck // openAudit's
	}
	for {
		i := bytes.IndexByte(data[a.size:], '\n')
		var line auditLine
		if i < 0 || json.Unmarshal(data[a.size:a.size+int64(i)], &line) != nil {
			break
		}
		a.size += int64(i) + 1
		a.last = max(a.last, line.Last)
		a.lastOpen = max(a.lastOpen, line.Open)
		handedOver = line.Handover
		switch {
		case line.Begins != nil:
			a.opened[line.Open] = *line.Begins
		case line.Record != nil:
			delete(a.opened, line.Open)
			a.last = line.Record.Seq
			a.unread = append(a.unread, *line.Record)
		}
	}
	return handedOver, a.file.Truncate(a.size) //nolint:wrapcheck // openAudit's
}

// errAudit is in the chain when no connection may begin for want of a record.
var errAudit = errors.New("the audit log can't be written")

// room waits until a record may be added: nothing happens unrecorded, neither
// for want of a reader nor of space on the disk.
func (a *audit) room(ctx context.Context) error {
	for {
		a.mu.Lock()
		full, changed := len(a.unread)+len(a.opened) >= maxUnread, a.changed
		err := a.flush()
		a.mu.Unlock()
		if err != nil {
			return fmt.Errorf("%w: %w", errAudit, err)
		}
		if !full {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // says all
		}
	}
}

// begin notes that a connection begins, for the case that this process dies.
func (a *audit) begin(rec stromboli.EgressRecord) (open int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deliver != nil {
		return 0 // the successor has the file, and gets the record
	}
	a.lastOpen++
	a.opened[a.lastOpen] = rec
	a.write(auditLine{Open: a.lastOpen, Begins: &rec})
	return a.lastOpen
}

// end numbers a record and adds it; open is what begin gave, or 0.
func (a *audit) end(open int64, rec stromboli.EgressRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deliver != nil {
		delete(a.opened, open)
		a.deliver(open, rec)
		return
	}
	if _, known := a.opened[open]; open != 0 && !known {
		return // it has been given up meanwhile
	}
	delete(a.opened, open)
	a.last++
	rec.Seq = a.last
	a.unread = append(a.unread, rec)
	a.write(auditLine{Open: open, Record: &rec})
	a.wake()
}

func (a *audit) wake() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// write appends a line. What the disk doesn't take is kept and tried again
// before the next connection begins.
func (a *audit) write(line auditLine) {
	b, err := json.Marshal(line)
	if err != nil { // our own types always marshal
		return
	}
	a.unwritten = append(append(a.unwritten, b...), '\n')
	_ = a.flush()
}

func (a *audit) flush() error {
	if len(a.unwritten) == 0 || a.removed || a.deliver != nil {
		return nil
	}
	n, err := a.file.Write(a.unwritten)
	a.size += int64(n)
	a.unwritten = a.unwritten[n:]
	return err //nolint:wrapcheck // room's
}

// read forgets the records up to after and returns those that follow, at most
// limit. It waits for one for so long.
func (a *audit) read(ctx context.Context, after int64, limit int, wait time.Duration) []stromboli.EgressRecord {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		a.mu.Lock()
		a.forget(after)
		records, changed := slices.Clone(a.unread[:min(limit, len(a.unread))]), a.changed
		a.mu.Unlock()
		if len(records) > 0 {
			return records
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *audit) forget(after int64) {
	n := 0
	for n < len(a.unread) && a.unread[n].Seq <= after {
		n++
	}
	if n == 0 {
		return
	}
	a.unread = slices.Clone(a.unread[n:])
	if a.size > compactAt && len(a.unread) < maxUnread/8 {
		_ = a.compact() // it is tried again
	}
	a.wake()
}

// compact writes a file that holds no more what was read, in one step.
func (a *audit) compact() error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	first := a.last
	if len(a.unread) > 0 {
		first = a.unread[0].Seq - 1
	}
	_ = enc.Encode(auditLine{Last: first, Open: a.lastOpen}) // to a buffer
	for _, open := range slices.Sorted(maps.Keys(a.opened)) {
		rec := a.opened[open]
		_ = enc.Encode(auditLine{Open: open, Begins: &rec})
	}
	for i := range a.unread {
		_ = enc.Encode(auditLine{Record: &a.unread[i]})
	}
	f, err := os.OpenFile(a.path+".new", os.O_CREATE|os.O_RDWR|os.O_APPEND|os.O_TRUNC, 0o600)
	if err != nil {
		return err //nolint:wrapcheck // only its being there matters
	}
	if _, err = f.Write(b.Bytes()); err == nil {
		err = os.Rename(a.path+".new", a.path)
	}
	if err != nil {
		_, _ = f.Close(), os.Remove(a.path+".new") // a full disk has no room for it either
		return err                                 //nolint:wrapcheck // see above
	}
	_ = a.file.Close()
	a.file, a.size, a.unwritten = f, int64(b.Len()), nil
	return nil
}

// remove deletes the records.
func (a *audit) remove() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed = true
	_ = a.file.Close()
	_ = os.Remove(a.path)
}

// handOver leaves the file to a successor; what ends from now on goes to
// deliver, which must not block.
func (a *audit) handOver(deliver func(open int64, rec stromboli.EgressRecord)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(auditLine{Handover: true})
	a.deliver = deliver
	_ = a.file.Close()
	a.wake()
}

// close leaves the file for the next process.
func (a *audit) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.flush()
	_ = a.file.Close()
}
