package api

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxBlock is the size of one event with its field names and blank line, above
// which the published clients break.
const maxBlock = 1 << 20

// appendBlock appends one event. Empty fields but data are left out; data is
// present, even if empty, when hasData says so. Each field is one line with
// exactly one space after its colon: line breaks, which would begin a field of
// the sender's choice, become spaces, and what is not UTF-8 is replaced. It
// returns false, and dst as it was, when the event would be too large.
func appendBlock(dst []byte, id, event string, data []byte, hasData bool) ([]byte, bool) {
	start := len(dst)
	if len(data) > maxBlock {
		return dst, false
	}
	if id != "" {
		dst = appendField(dst, "id: ", []byte(id))
	}
	if event != "" {
		dst = appendField(dst, "event: ", []byte(event))
	}
	if hasData {
		dst = appendField(dst, "data: ", data)
	}
	dst = append(dst, '\n')
	if len(dst)-start > maxBlock {
		return dst[:start], false
	}
	return dst, true
}

func appendField(dst []byte, name string, value []byte) []byte {
	dst = append(dst, name...)
	if !utf8.Valid(value) {
		value = bytes.ToValidUTF8(value, []byte("\uFFFD"))
	}
	at := len(dst)
	dst = append(dst, value...)
	for i := at; i < len(dst); i++ {
		if dst[i] == '\n' || dst[i] == '\r' {
			dst[i] = ' '
		}
	}
	return append(dst, '\n')
}

// sse writes an event stream: each write is flushed and has its own deadline.
type sse struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	buf     []byte
}

// startStream sends the stream's headers.
func (a *API) startStream(w http.ResponseWriter) *sse {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no")
	h.Set("Connection", "close") // clients wait for the end of the connection
	return &sse{w: w, rc: http.NewResponseController(w), timeout: a.cfg.WriteTimeout}
}

// open writes the headers and, unless empty, a block with an id alone.
func (s *sse) open(id string) error {
	s.w.WriteHeader(http.StatusOK)
	s.buf = s.buf[:0]
	if id != "" {
		s.buf, _ = appendBlock(s.buf, id, "", nil, false)
	}
	return s.flush()
}

// event writes one event, or in place of its data, when that is too large, the
// data that instead makes.
func (s *sse) event(id, event string, data []byte, instead func() []byte) error {
	var ok bool
	if s.buf, ok = appendBlock(s.buf[:0], id, event, data, true); !ok {
		if s.buf, ok = appendBlock(s.buf[:0], id, event, instead(), true); !ok {
			return fmt.Errorf("the event %s is too large in any form", id)
		}
	}
	return s.flush()
}

// beat writes a comment, so that both ends see that the other is there.
func (s *sse) beat() error {
	s.buf = append(s.buf[:0], ": still here\n\n"...)
	return s.flush()
}

// retry tells the client when to come back: around d, and not all at once.
func (s *sse) retry(d time.Duration) error {
	ms := d.Milliseconds()
	ms = ms/2 + rand.Int64N(max(1, ms)) //nolint:gosec // jitter, not a secret
	s.buf = append(s.buf[:0], "retry: "+strconv.FormatInt(ms, 10)+"\n\n"...)
	return s.flush()
}

func (s *sse) flush() error {
	// Writers without deadlines (in tests) need none.
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.timeout))
	if _, err := s.w.Write(s.buf); err != nil {
		return &writeError{err}
	}
	if cap(s.buf) > 64<<10 {
		s.buf = nil // a large event's memory must not stay for the stream's life
	}
	if err := s.rc.Flush(); err != nil {
		return &writeError{err}
	}
	return nil
}

// oneLine makes a message fit into one line of a stream.
func oneLine(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// writeError: the client takes nothing any more.
type writeError struct{ err error }

func (e *writeError) Error() string { return "write to the stream: " + e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

func isWriteError(err error) bool {
	_, ok := errors.AsType[*writeError](err)
	return ok
}
