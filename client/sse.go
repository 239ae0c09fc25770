package client

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// maxEvent bounds one event's memory. Servers send at most 1 MiB; a little
// more is taken from others.
const maxEvent = 4 << 20

var errEventTooLarge = errors.New("an event of the stream is too large")

// message is one dispatched event of a stream.
type message struct {
	id    string // the last id seen, of this event or an earlier one
	event string // empty: unnamed
	data  string
}

// parser reads an event stream as the HTML standard says, in bounded memory.
type parser struct {
	r      *bufio.Reader
	lastID string
	retry  time.Duration // zero until the server has said something
	skipLF bool          // the line before ended with CR
	begun  bool
}

func newParser(r io.Reader) *parser { return &parser{r: bufio.NewReaderSize(r, 32<<10)} }

// next returns the next event with data. Blocks without data only move lastID.
// What an ended stream leaves incomplete is dropped.
func (p *parser) next() (message, error) {
	var m message
	var data []byte
	hasData := false
	size := 0
	for {
		line, err := p.line()
		if err != nil {
			return message{}, err
		}
		if size += len(line); size > maxEvent {
			return message{}, errEventTooLarge
		}
		if len(line) == 0 {
			size = 0
			if !hasData {
				m.event = ""
				continue
			}
			m.id, m.data = p.lastID, string(bytes.TrimSuffix(data, []byte("\n")))
			return m, nil
		}
		name, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "data":
			hasData = true
			data = append(append(data, value...), '\n')
		case "event":
			m.event = value
		case "id":
			if !strings.Contains(value, "\x00") {
				p.lastID = value
			}
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				p.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
}

// line returns the next line without its end, which is CR, LF or both.
func (p *parser) line() ([]byte, error) {
	if !p.begun {
		p.begun = true
		if bom, err := p.r.Peek(3); err == nil && string(bom) == "\uFEFF" {
			_, _ = p.r.Discard(3) // was just peeked
		}
	}
	var line []byte
	for {
		if len(line) > maxEvent {
			return nil, errEventTooLarge
		}
		if _, err := p.r.Peek(1); err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
		chunk, _ := p.r.Peek(p.r.Buffered())
		if p.skipLF {
			p.skipLF = false
			if chunk[0] == '\n' {
				_, _ = p.r.Discard(1)
				continue
			}
		}
		i := bytes.IndexAny(chunk, "\r\n")
		if i < 0 {
			line = append(line, chunk...)
			_, _ = p.r.Discard(len(chunk))
			continue
		}
		line = append(line, chunk[:i]...)
		p.skipLF = chunk[i] == '\r'
		_, _ = p.r.Discard(i + 1)
		return line, nil
	}
}
