package audit

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/tomblancdev/stromboli"
)

// maxFaults bounds a report.
const maxFaults = 20

// Report is what Verify has found.
type Report struct {
	Files   int
	Records uint64
	First   uint64 // number of the oldest record; above 1 the ones before were pruned
	Last    Head
	// Torn is how many bytes follow the last whole record: of a write that goes on, or
	// that was cut short and that the next start takes away.
	Torn int64
	// Open is how many intents have no outcome: they go on, or the server died
	// before it was known.
	Open   int
	Faults []Fault // the first ones; none: the log is whole
}

// Verify reads a whole log, which may be written meanwhile, and finds what was changed,
// is missing or stands in another place. It compares the log with its head, and with further heads that were noted
// elsewhere. An error tells that it couldn't be read.
func Verify(path string, known ...Head) (Report, error) {
	for try := 0; ; try++ {
		before, err := segments(path)
		if err != nil {
			return Report{}, fmt.Errorf("audit: verify: %w", err)
		}
		v := &verifier{path: path, open: map[uint64]bool{}, ends: map[uint64]string{}, known: known}
		err = v.all(before)
		if err == nil && len(v.report.Faults) == 0 {
			return v.report, nil
		}
		// Files that were begun or pruned meanwhile look like faults.
		after, listErr := segments(path)
		if try >= 3 || listErr != nil || slices.Equal(before, after) {
			if err != nil {
				return v.report, fmt.Errorf("audit: verify: %w", err)
			}
			return v.report, nil
		}
	}
}

type verifier struct {
	path   string
	known  []Head
	chain  chain
	open   map[uint64]bool
	ends   map[uint64]string // hashes of the files' last records
	before *Head             // what the first record follows, until that is known to have been pruned
	report Report
}

func (v *verifier) fault(f Fault) {
	if len(v.report.Faults) < maxFaults {
		v.report.Faults = append(v.report.Faults, f)
	}
}

func (v *verifier) all(files []segment) error {
	head, err := v.readHead()
	if err != nil {
		return err
	}
	v.report.Files = len(files)
	for i, s := range files {
		if err := v.file(s, i == len(files)-1); err != nil {
			return err
		}
	}
	v.report.Last, v.report.Open = v.chain.last, len(v.open)
	if v.before != nil {
		v.fault(Fault{Seq: v.report.First, What: fmt.Sprintf("records 1 to %d are missing before it, and no record says that they were pruned", v.before.Seq)})
	}
	for _, k := range append([]Head{head}, v.known...) {
		if k.Seq > v.report.Last.Seq {
			v.fault(Fault{What: fmt.Sprintf("the log ends with record %d, but record %d was written", v.report.Last.Seq, k.Seq)})
		}
	}
	return nil
}

// readHead adds the log's own head to what is known.
func (v *verifier) readHead() (Head, error) {
	name := filepath.Base(headPath(v.path))
	f, err := openSegment(headPath(v.path))
	if missing(err) {
		v.fault(Fault{File: name, What: "it is missing"})
		return Head{}, nil
	}
	if err != nil {
		return Head{}, err
	}
	defer func() { _ = f.Close() }()
	head, err := readHead(f)
	if err != nil {
		v.fault(Fault{File: name, What: err.Error()})
		return Head{}, nil
	}
	v.known = append(slices.Clone(v.known), head)
	return head, nil
}

func (v *verifier) file(s segment, last bool) error {
	f, err := openSegment(s.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	name := filepath.Base(s.path)
	n, end := 0, int64(0)
	var tail *Fault // a line that is no record, if nothing follows it
	err = lines(f, 0, func(line []byte, at int64, whole bool) bool {
		r, err := decode(line)
		if err != nil || !whole {
			if tail != nil {
				v.broken(*tail)
			}
			tail = &Fault{File: name, Offset: at, What: "the line is incomplete"}
			if err != nil && whole {
				tail.What = "the line was changed: " + err.Error()
			}
			return true
		}
		if tail != nil {
			v.broken(*tail)
			tail = nil
		}
		if n++; n == 1 && s.first > 0 && r.Seq != s.first {
			v.fault(Fault{File: name, Seq: r.Seq, What: "it isn't the record that the file is named for"})
		}
		v.record(name, at, r)
		end = at + int64(len(line)) + 1
		return true
	})
	v.ends[v.chain.last.Seq] = v.chain.last.Hash
	if err != nil || tail == nil {
		return err
	}
	if fi, err := f.Stat(); err != nil {
		return err
	} else if cut, err := torn(f, end, fi.Size()); err != nil {
		return err
	} else if cut && last && s.first == 0 {
		v.report.Torn = fi.Size() - end
		return nil
	}
	v.broken(*tail)
	return nil
}

// broken counts a line that is no record as one, so that what follows it is judged
// by itself.
func (v *verifier) broken(f Fault) {
	v.fault(f)
	if v.report.Records > 0 {
		v.chain.last = Head{Seq: v.chain.last.Seq + 1}
	}
}

// pruned takes the word of a record for the missing beginning. Of what it says is
// gone some may be there still: Prune was cut short.
func (v *verifier) pruned(r stromboli.AuditRecord) {
	through, err := strconv.ParseUint(r.Detail["through"], 10, 64)
	if err != nil || through < v.before.Seq {
		return
	}
	hash := v.before.Hash
	if through > v.before.Seq {
		hash = v.ends[through]
	}
	if r.Detail["hash"] == hash {
		v.before = nil
	}
}

func (v *verifier) record(file string, at int64, r stromboli.AuditRecord) {
	if v.report.Records == 0 {
		v.report.First = r.Seq
		v.chain.last = Head{r.Seq - 1, r.Prev}
		if r.Seq > 1 {
			v.before = &Head{r.Seq - 1, r.Prev}
		} else if r.Prev != noHash {
			v.fault(Fault{File: file, Offset: at, Seq: r.Seq, What: "it follows another record"})
		}
	}
	v.report.Records++
	if what := v.chain.add(r); what != "" {
		v.fault(Fault{File: file, Offset: at, Seq: r.Seq, What: what})
	}
	for _, k := range v.known {
		if k.Seq == r.Seq && k.Hash != r.Hash {
			v.fault(Fault{File: file, Offset: at, Seq: r.Seq, What: "it is another record than was written"})
		}
	}
	if v.before != nil && r.Action == ActionPruned {
		v.pruned(r)
	}
	switch r.Stage {
	case stromboli.AuditIntent:
		v.open[r.Seq] = true
	case stromboli.AuditOutcome:
		delete(v.open, r.Intent)
	case stromboli.AuditEvent:
	}
}
