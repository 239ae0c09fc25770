package client

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func parseAll(r io.Reader) ([]message, *parser, error) {
	p := newParser(r)
	var all []message
	for {
		m, err := p.next()
		if err != nil {
			return all, p, err
		}
		all = append(all, m)
	}
}

func TestParser(t *testing.T) {
	for in, want := range map[string][]message{
		"data: a\n\n":                                             {{"", "", "a"}},
		"\uFEFFdata:a\r\rdata: b\r\n\r\n":                         {{"", "", "a"}, {"", "", "b"}},
		"id: 1\n\ndata: a\n\n":                                    {{"1", "", "a"}},
		"event: x\n\ndata: a\n\n":                                 {{"", "", "a"}},
		"id: 1\nevent: e\ndata: a\ndata\ndata:  b\n\n":            {{"1", "e", "a\n\n b"}},
		": c\n\n: d\ndata: \n\n":                                  {{"", "", ""}},
		"id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\nid\ndata: c\n\n": {{"1", "", "a"}, {"1", "", "b"}, {"", "", "c"}},
		"datax: 1\nfoo\ndata: a: b\n\n":                           {{"", "", "a: b"}},
		"data: a\n":                                               nil,
		"data: a":                                                 nil,
		"":                                                        nil,
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "bytewise": iotest.OneByteReader(strings.NewReader(in))} {
			got, _, _ := parseAll(r)
			if !slices.Equal(got, want) {
				t.Errorf("%s %q: %q", name, in, got)
			}
		}
	}
	_, p, _ := parseAll(strings.NewReader("retry: 1500\nretry: x\nretry: -1\n\nid: 7\n\n"))
	if p.retry != 1500*time.Millisecond || p.lastID != "7" {
		t.Errorf("%+v", p)
	}
}

func TestParserIsBounded(t *testing.T) {
	for _, in := range []string{strings.Repeat("x", maxEvent+2), strings.Repeat("data: x\n", maxEvent/4)} {
		if _, _, err := parseAll(strings.NewReader(in)); !errors.Is(err, errEventTooLarge) {
			t.Errorf("%v", err)
		}
	}
	big := strings.Repeat("y", 1<<20)
	if got, _, _ := parseAll(strings.NewReader("data: " + big + "\n\n")); len(got) != 1 || got[0].data != big {
		t.Error("a large event was lost")
	}
}

func FuzzParser(f *testing.F) {
	f.Add([]byte("id: run-x/1.2\nevent: done\ndata: {}\n\n: hb\n\nretry: 5\n\n"))
	f.Add([]byte("\uFEFFdata\r\rdata:x\r\n\r\n\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, p, err := parseAll(bytes.NewReader(in))
		if err == nil {
			t.Fatal("no end")
		}
		parts, q, _ := parseAll(iotest.OneByteReader(bytes.NewReader(in)))
		if !slices.Equal(whole, parts) || p.lastID != q.lastID || p.retry != q.retry {
			t.Fatalf("%q: %q and %q", in, whole, parts)
		}
		for _, m := range whole {
			if strings.ContainsAny(m.event+m.id, "\r\n") || strings.Contains(m.data, "\r") {
				t.Fatalf("%q", m)
			}
		}
	})
}
