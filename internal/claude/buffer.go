package claude

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Bounds of what a turn keeps in memory. Whatever is beyond them stands in the
// run's events.
const (
	maxOutput  = 8 << 20  // of rendered output
	maxPartial = 64 << 10 // of a crash's partial output
	maxError   = 4 << 10  // of an error's text
	maxStderr  = 2 << 10  // of the last lines on standard error
)

// boundedText is a list of texts whose newest maxOutput bytes are kept.
type boundedText struct {
	parts []string
	size  int
	cut   bool
}

func (b *boundedText) add(s string) {
	if s == "" {
		return
	}
	if len(s) > maxOutput {
		s, b.cut = lastBytes(s, maxOutput), true
	}
	b.parts = append(b.parts, s)
	b.size += len(s)
	for b.size > maxOutput {
		b.size -= len(b.parts[0])
		b.parts = b.parts[1:]
		b.cut = true
	}
}

func (b *boundedText) reset()         { *b = boundedText{} }
func (b *boundedText) empty() bool    { return len(b.parts) == 0 }
func (b *boundedText) joined() string { return strings.Join(b.parts, "\n") }

// lineBuffer keeps the first maxOutput bytes of lines.
type lineBuffer struct {
	buf     []byte
	dropped int
}

func (b *lineBuffer) add(line []byte) {
	if b.dropped > 0 || len(b.buf)+len(line)+1 > maxOutput {
		b.dropped++
		return
	}
	b.buf = append(append(b.buf, line...), '\n')
}

// render joins the lines without a newline at the end. Where lines are missing
// a marker says how many, and the result, which readers look for, is put
// behind it.
func (b *lineBuffer) render(result []byte) string {
	if b.dropped == 0 {
		return strings.TrimSuffix(string(b.buf), "\n")
	}
	marker := encode(struct {
		Type    string `json:"type"`
		Subtype string `json:"subtype"`
		Dropped int    `json:"dropped_lines"`
	}{"stromboli", "output_cut", b.dropped})
	return strings.TrimSuffix(string(b.buf)+string(marker)+string(result), "\n")
}

// tail keeps the last lines of standard error.
type tail struct{ buf []byte }

func (t *tail) add(line []byte) {
	if len(line) > maxStderr {
		line = line[len(line)-maxStderr:]
	}
	t.buf = append(append(t.buf, line...), '\n')
	if over := len(t.buf) - maxStderr; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
}

func (t *tail) String() string {
	return strings.TrimSpace(string(bytes.ToValidUTF8(t.buf, nil)))
}

// lastBytes is the end of s, at most n bytes and whole characters.
func lastBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// firstBytes is the beginning of s, at most n bytes and whole characters.
func firstBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
