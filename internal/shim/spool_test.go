package shim

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func openSpool(t *testing.T, dir string, limit int64) *spool {
	t.Helper()
	s, err := newSpool(filepath.Join(dir, "spool"), limit)
	must(t, err)
	t.Cleanup(func() { _ = s.close() })
	return s
}

func rec(text string) []byte { return appendRecord(nil, time.Unix(1, 0), Stdout, []byte(text), 0) }

// Against a model: whatever is appended, acknowledged, and read from wherever,
// every kept line is there once and in order.
func TestSpoolModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		s, err := newSpool(filepath.Join(dir, "spool"), 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.close() }()
		var lines []string
		acked := 0
		reader, pos := cursor{seq: 1}, 0 // pos: lines that the reader has had
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				var b []byte
				for range rapid.IntRange(1, 50).Draw(t, "records") {
					size := rapid.SampledFrom([]int{0, 1, 100, 5000, 70_000}).Draw(t, "size")
					line := strings.Repeat(string(rune('a'+len(lines)%26)), size)
					lines = append(lines, line)
					b = append(b, rec(line)...)
				}
				if last, err := s.append(b, false); err != nil || last != int64(len(lines)) {
					t.Fatalf("append: last %d, %v; want %d", last, err, len(lines))
				}
			},
			"ack": func(t *rapid.T) {
				to := rapid.IntRange(0, len(lines)+1).Draw(t, "to")
				if err := s.ack(int64(to)); err != nil {
					t.Fatal(err)
				}
				acked = max(acked, min(to, len(lines)))
			},
			"seek": func(t *rapid.T) {
				after := rapid.IntRange(0, len(lines)+1).Draw(t, "after")
				c, err := s.seek(int64(after))
				if err != nil {
					t.Fatal(err)
				}
				low := min(after, len(lines))
				if c.seq <= int64(low) || c.seq > int64(max(low, acked))+1 {
					t.Fatalf("seek(%d) gave %d with %d acknowledged of %d", after, c.seq, acked, len(lines))
				}
				reader, pos = c, int(c.seq)-1
			},
			"read": func(t *rapid.T) {
				b, err := s.read(nil, &reader, int64(rapid.SampledFrom([]int{recordHeader, 1000, 1 << 18}).Draw(t, "max")))
				if err != nil {
					t.Fatal(err)
				}
				got, err := decodeRecords(b)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) == 0 && pos < len(lines) && acked < len(lines) {
					t.Fatalf("nothing after %d of %d", pos, len(lines))
				}
				for _, l := range got {
					if l.Seq != int64(pos+1) && (l.Seq <= int64(pos) || l.Seq > int64(acked+1)) {
						t.Fatalf("line %d after %d, %d acknowledged", l.Seq, pos, acked)
					}
					pos = int(l.Seq)
					if string(l.Data) != lines[pos-1] {
						t.Fatalf("line %d has changed", pos)
					}
				}
			},
			"": func(t *rapid.T) {
				first, last := s.bounds()
				if first != int64(acked+1) || last != int64(len(lines)) {
					t.Fatalf("bounds %d to %d, want %d to %d", first, last, acked+1, len(lines))
				}
				if len(s.marks) > int((s.end-s.start)/markEvery)+2 {
					t.Fatalf("%d marks for %d bytes", len(s.marks), s.end-s.start)
				}
			},
		})
	})
}

func TestSpoolTrimFreesSpace(t *testing.T) {
	s := openSpool(t, t.TempDir(), 64<<20)
	for range 100 {
		if _, err := s.append(rec(strings.Repeat("x", 100_000)), false); err != nil {
			t.Fatal(err)
		}
	}
	before := diskUse(t, s.f)
	must(t, s.ack(90))
	if after := diskUse(t, s.f); after > before/5 {
		t.Errorf("%d bytes are kept of %d", after, before)
	}
	must(t, s.ack(100))
	if after := diskUse(t, s.f); after > 8192 {
		t.Errorf("%d bytes are kept of nothing", after)
	}
}

func diskUse(t *testing.T, f *os.File) int64 {
	t.Helper()
	fi, err := f.Stat()
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestSpoolFullWaitsForAck(t *testing.T) {
	s := openSpool(t, t.TempDir(), 256<<10)
	line := rec(strings.Repeat("x", 10_000))
	n := 0
	for s.end+int64(len(line)) <= s.limit {
		_, err := s.append(line, false)
		must(t, err)
		n++
	}
	done := make(chan int64)
	go func() {
		last, _ := s.append(rec("waits"), false)
		last2, _ := s.append(line, false)
		done <- max(last, last2)
	}()
	// The shim's own records go past a full spool.
	_, err := s.append(rec("urgent"), true)
	must(t, err)
	select {
	case <-done:
		t.Fatal("a full spool took a line")
	case <-time.After(50 * time.Millisecond):
	}
	must(t, s.ack(int64(n)))
	if last := <-done; last != int64(n+3) {
		t.Errorf("last line is %d, want %d", last, n+3)
	}
	go func() {
		for {
			if _, err := s.append(line, false); err != nil {
				done <- -1
				return
			}
		}
	}()
	must(t, s.close())
	if <-done != -1 {
		t.Error("a closed spool took lines")
	}
}

// A tmpfs smaller than the limit is like a full spool.
func TestSpoolWithoutSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := openSpool(t, dir, 64<<20)
	const n = 400
	errs := make(chan error, 1)
	go func() {
		for i := range n {
			if _, err := s.append(rec(fmt.Sprint(i, strings.Repeat("x", 9000))), false); err != nil {
				errs <- err
				return
			}
		}
		errs <- nil
	}()
	at, seen := cursor{seq: 1}, int64(0)
	appended, stop := s.subscribe()
	defer stop()
	for seen < n {
		b, err := s.read(nil, &at, 1<<16)
		must(t, err)
		lines, err := decodeRecords(b)
		must(t, err)
		for _, l := range lines {
			if l.Seq != seen+1 || !bytes.HasPrefix(l.Data, fmt.Append(nil, seen)) {
				t.Fatalf("line %d after %d", l.Seq, seen)
			}
			seen = l.Seq
		}
		if len(lines) > 0 {
			must(t, s.ack(seen))
			continue
		}
		select {
		case <-appended:
		case err := <-errs:
			must(t, err)
			errs <- nil
		case <-ctx(t).Done():
			t.Fatalf("stuck at %d", seen)
		}
	}
	must(t, <-errs)
}

func TestLineReader(t *testing.T) {
	const limit = 10
	for name, c := range map[string]struct {
		in   []string // as the reads return it
		want []string // dropped bytes behind a |
	}{
		"lines":                {[]string{"a\nb\n"}, []string{"a", "b"}},
		"empty lines":          {[]string{"\n\n", "\n"}, []string{"", "", ""}},
		"pieces":               {[]string{"a", "b", "\nc", "\n"}, []string{"ab", "c"}},
		"no newline":           {[]string{"a\nb"}, []string{"a", "b"}},
		"nothing":              {nil, nil},
		"exactly the limit":    {[]string{"0123456789\n0123456789"}, []string{"0123456789", "0123456789"}},
		"one above":            {[]string{"0123456789x\ny\n"}, []string{"0123456789|1", "y"}},
		"far above, in pieces": {[]string{"01234", "56789", "xxx", "xxx\ny"}, []string{"0123456789|6", "y"}},
		"unfinished and above": {[]string{"0123456789xx"}, []string{"0123456789|2"}},
		"any bytes":            {[]string{"\x00\xff\r\n"}, []string{"\x00\xff\r"}},
	} {
		t.Run(name, func(t *testing.T) {
			var records []byte
			r := &lineReader{
				src: &pieces{c.in}, stream: Stdout, limit: limit, now: time.Now,
				put: func(b []byte) error { records = append(records, b...); return nil },
			}
			must(t, r.run())
			for off, seq := int64(0), int64(1); off < int64(len(records)); seq++ {
				setSeq(records[off:], seq)
				off += recordSize(records[off:])
			}
			lines, err := decodeRecords(records)
			must(t, err)
			var got []string
			for _, l := range lines {
				s := string(l.Data)
				if l.Dropped > 0 {
					s += fmt.Sprint("|", l.Dropped)
				}
				got = append(got, s)
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// pieces is a reader that returns one string at a time.
type pieces struct{ left []string }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[0])
	p.left = p.left[1:]
	return n, nil
}
