package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/tomblancdev/stromboli"
)

const seqDigits = 20

// segment is one file of the log.
type segment struct {
	path  string
	first uint64 // of a full file, by its name; 0: the one that is appended to
}

func fullPath(path string, first uint64) string {
	return fmt.Sprintf("%s.%0*d", path, seqDigits, first)
}

// segments lists the log's files in order; the one that is appended to comes last.
func segments(path string) ([]segment, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var all []segment
	active := false
	for _, e := range entries {
		name := e.Name()
		if name == filepath.Base(path) {
			active = true
			continue
		}
		digits, ours := strings.CutPrefix(name, filepath.Base(path)+".")
		if !ours || len(digits) != seqDigits {
			continue
		}
		if first, err := strconv.ParseUint(digits, 10, 64); err == nil && first > 0 {
			all = append(all, segment{filepath.Join(filepath.Dir(path), name), first})
		}
	}
	slices.SortFunc(all, func(a, b segment) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	if active {
		all = append(all, segment{path: path})
	}
	return all, nil
}

func openSegment(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
}

// lines calls fn with each line of r, its offset and whether its end was there,
// until fn returns false. A line longer than any record is handed over cut.
func lines(r io.Reader, at int64, fn func(line []byte, at int64, whole bool) bool) error {
	in := bufio.NewReaderSize(r, maxLine+1)
	for {
		line, err := in.ReadSlice('\n')
		n := int64(len(line))
		switch {
		case err == nil:
			if !fn(line[:len(line)-1], at, true) {
				return nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
			cut := string(line)
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = in.ReadSlice('\n')
				n += int64(len(line))
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if whole := err == nil; !fn([]byte(cut), at, whole) || !whole {
				return nil // the end of the file
			}
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				fn(line, at, false)
			}
			return nil
		default:
			return err
		}
		at += n
	}
}

// seek returns the offset of the first record of a file whose number is at least
// seq, by halves: numbers grow along the file. A file of which something isn't a
// record is read from its beginning.
func seek(f *os.File, seq uint64) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	low, high := int64(0), fi.Size() // the answer lies in low..high
	for high-low > 4*maxLine {
		mid := (low + high) / 2
		r, at, err := recordAt(f, mid)
		if err != nil {
			return 0, err
		}
		switch {
		case at < 0 || at >= high:
			return low, nil
		case r.Seq < seq:
			low = at
		default:
			high = at
		}
	}
	return low, nil
}

// recordAt is the first record that begins after an offset; its offset is -1
// where there is none.
func recordAt(f *os.File, offset int64) (r stromboli.AuditRecord, at int64, err error) {
	at = -1
	first := true
	err = lines(io.NewSectionReader(f, offset, 2*maxLine), offset, func(line []byte, begin int64, whole bool) bool {
		if first { // the rest of the one that offset lies in
			first = false
			return true
		}
		if got, err := decode(line); whole && err == nil {
			r, at = got, begin
		}
		return false
	})
	return r, at, err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
