package api

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

func FuzzPosition(f *testing.F) {
	id := "run-0123456789abcdefghjkmnpqrs"
	for _, s := range []string{id + "/0", id + "/7", id + "/7.2", "job-" + id[4:] + "/1", id + "/07", id + "/7.0", id + "/-1", "5", "", id + "/0.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePosition(s)
		if !ok {
			return
		}
		if again, ok := parsePosition(p.String()); !ok || again != p {
			t.Fatalf("%q → %v → %v", s, p, again)
		}
		if after, skip := p.start(); after < 0 || skip < 0 {
			t.Fatalf("%q starts at %d, %d", s, after, skip)
		}
		if !strings.HasSuffix(s, strings.TrimPrefix(p.String(), "run-")) {
			t.Fatalf("%q is written as %q", s, p)
		}
	})
}

func TestPosition(t *testing.T) {
	id := stromboli.NewRunID(fixedTime())
	for s, want := range map[string]bool{
		id + "/0": true, id + "/12": true, id + "/12.3": true, stromboli.JobID(id) + "/1": true,
		id: false, id + "/": false, id + "/x": false, id + "/1.": false, id + "/1.0": false, id + "/01": false,
		id + "/+1": false, id + "/1.2.3": false, "3": false, id + "/99999999999999999999": false, id + "/0.1": false,
	} {
		if _, ok := parsePosition(s); ok != want {
			t.Errorf("%q: %v", s, ok)
		}
	}
}

func FuzzBlock(f *testing.F) {
	f.Add("run-x/1", "", "hello")
	f.Add("a\nevent: done", "x\r\ndata: y", "1\r2\n3\r\n\r\n")
	f.Add("", "", "")
	f.Add("", "e", "\xff\xfe")
	f.Fuzz(func(t *testing.T, id, event, data string) {
		b, ok := appendBlock(nil, id, event, []byte(data), true)
		if !ok {
			if len(b) != 0 || len(id)+len(event)+len(data) < maxBlock/4 {
				t.Fatalf("refused %d bytes", len(data))
			}
			return
		}
		lines := strings.Split(string(b), "\n")
		want := 3 // data, blank, and the rest after the last LF
		if id != "" {
			want++
		}
		if event != "" {
			want++
		}
		if len(lines) != want || !bytes.HasSuffix(b, []byte("\n\n")) || bytes.ContainsRune(b, '\r') || !utf8.Valid(b) || len(b) > maxBlock {
			t.Fatalf("%q", b)
		}
		if !strings.HasPrefix(lines[want-3], "data: ") {
			t.Fatalf("%q", b)
		}
	})
}

func TestBlockLimit(t *testing.T) {
	room := maxBlock - len("id: i\nevent: e\ndata: \n\n")
	if b, ok := appendBlock(nil, "i", "e", make([]byte, room), true); !ok || len(b) != maxBlock {
		t.Error("the largest event was refused")
	}
	kept := []byte("before")
	if b, ok := appendBlock(kept, "i", "e", make([]byte, room+1), true); ok || string(b) != "before" {
		t.Error("an event above the limit was written")
	}
	// Replacing invalid bytes makes an event longer.
	if _, ok := appendBlock(nil, "", "", bytes.Repeat([]byte("\xffa"), maxBlock/3), true); ok {
		t.Error("an event above the limit was written")
	}
}

func TestSplitHost(t *testing.T) {
	for s, want := range map[string]hostPort{
		"localhost": {"localhost", ""}, "LOCALHOST.:80": {"localhost", "80"}, "[::1]:8080": {"::1", "8080"},
		"[0:0:0:0:0:0:0:1]": {"::1", ""}, "[fe80::1%25eth0]:1": {}, "127.0.0.1:9": {"127.0.0.1", "9"},
		"::1": {}, "[::1": {}, "[::1]x": {}, "a:b": {}, "a:70000": {}, "": {}, ".": {}, "[127.0.0.1]": {}, ":80": {},
	} {
		got, ok := splitHost(s)
		if s == "[fe80::1%25eth0]:1" {
			if got.name != "fe80::1" {
				t.Errorf("%q: %v", s, got)
			}
			continue
		}
		if ok != (want.name != "") || (ok && got != want) {
			t.Errorf("%q: %v %v", s, got, ok)
		}
	}
}

func fixedTime() time.Time { return time.UnixMilli(1_700_000_000_000) }
