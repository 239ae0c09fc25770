package claude

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tomblancdev/stromboli"
)

const (
	// maxTranscriptLine bounds one line of a transcript, which may hold an image.
	// A longer one is passed over.
	maxTranscriptLine = 32 << 20
	// pageBytes bounds the texts on a page of messages. What comes after is cut
	// to cutBytes a text.
	pageBytes = 16 << 20
	cutBytes  = 4 << 10
	// maxSessionTitle is in characters.
	maxSessionTitle = 100
)

// Messages reads a page of the conversation in a transcript: the messages after
// the first offset ones, at most limit. Lines that are no messages, of whatever
// type, and such as can't be read are passed over. It reads to the end, to count,
// and holds one page and one line in memory.
func Messages(r io.Reader, offset, limit int) (stromboli.MessagePage, error) {
	page := stromboli.MessagePage{Messages: []stromboli.Message{}}
	room := pageBytes
	err := eachMessage(r, func(place int, line []byte) (bool, error) {
		page.Total++
		if page.Total > offset && len(page.Messages) < limit {
			m := parseMessage(place, line)
			room -= len(line)
			if room < 0 {
				cutMessage(&m)
			}
			page.Messages = append(page.Messages, m)
		}
		return true, nil
	})
	return page, err
}

// FindMessage reads one message of a transcript, whole; ok is false where it has
// none with that id.
func FindMessage(r io.Reader, id string) (m stromboli.Message, ok bool, err error) {
	quoted := []byte(`"` + id + `"`) // ids of the CLI's have nothing to escape
	err = eachMessage(r, func(place int, line []byte) (bool, error) {
		if bytes.Contains(line, quoted) || placeID(place) == id {
			m = parseMessage(place, line)
			ok = m.UUID == id
		}
		return !ok, nil
	})
	return m, ok, err
}

// TranscriptInfo is what is to be known of a transcript that comes from elsewhere.
type TranscriptInfo struct {
	SessionID string // the CLI's, in canonical form; empty where it tells none
	Title     string
	Messages  int // of the user and the assistant
}

// CheckTranscript reads a transcript to its end. The error is Invalid where a
// line is not a JSON object or too long, or there is no message to go on from; a
// last line that was cut is as good as none, for the CLI too.
func CheckTranscript(r io.Reader) (TranscriptInfo, error) {
	var info TranscriptInfo
	err := eachLine(r, func(n int, line []byte, l lineState) (bool, error) {
		if l.long {
			return false, stromboli.FieldError("transcript", "line %d is longer than %d bytes", n, maxTranscriptLine)
		}
		kind, whole := lineType(line)
		if !whole || !json.Valid(line) {
			if l.last {
				return false, nil
			}
			return false, stromboli.FieldError("transcript", "line %d is not a JSON object", n)
		}
		if kind != "user" && kind != "assistant" {
			return true, nil
		}
		info.Messages++
		if info.SessionID == "" || info.Title == "" && kind == "user" {
			m := parseMessage(n, line)
			if id := strings.ToLower(m.SessionID); info.SessionID == "" && IsUUID(id) {
				info.SessionID = id
			}
			for _, b := range m.Content.Content {
				if kind == "user" && info.Title == "" {
					info.Title = sessionTitle(b.Text)
				}
			}
		}
		return true, nil
	})
	if err == nil && info.Messages == 0 {
		err = stromboli.FieldError("transcript", "holds no message of a user or an assistant: it must be a file of ~/.claude/projects, as the agent CLI writes them")
	}
	return info, err
}

// SessionTitle names a session by what is asked in its first run.
func SessionTitle(spec stromboli.RunSpec) string {
	if spec.Claude.InputFormat != stromboli.InputStreamJSON {
		return sessionTitle(spec.Prompt)
	}
	blocks, _ := promptMessage(spec.Prompt) // validated
	for _, b := range blocks {
		if title := sessionTitle(b.Text); title != "" {
			return title
		}
	}
	return ""
}

// sessionTitle is the beginning of a text, on one line.
func sessionTitle(text string) string {
	if len(text) > 16*maxSessionTitle {
		text = text[:16*maxSessionTitle]
	}
	r := []rune(strings.Join(strings.Fields(strings.ToValidUTF8(text, "")), " "))
	if len(r) > maxSessionTitle {
		return string(r[:maxSessionTitle-1]) + "…"
	}
	return string(r)
}

// eachMessage calls f for each line that is a message, with its place among all
// lines, until it returns false.
func eachMessage(r io.Reader, f func(place int, line []byte) (bool, error)) error {
	return eachLine(r, func(n int, line []byte, l lineState) (bool, error) {
		if kind, whole := lineType(line); l.long || !whole || kind != "user" && kind != "assistant" && kind != "queue-operation" {
			return true, nil
		}
		return f(n, line)
	})
}

// lineState tells of a line: that it is longer than what there is of it, that
// nothing follows and no line feed ends it.
type lineState struct{ long, last bool }

// eachLine calls f for each line, numbered from 1, that isn't empty, until it
// returns false. The bytes are valid during the call.
func eachLine(r io.Reader, f func(n int, line []byte, l lineState) (bool, error)) error {
	in := bufio.NewReaderSize(r, 256<<10)
	var long []byte // a line that is larger than the buffer
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		var state lineState
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long[:0], line...)
			for errors.Is(err, bufio.ErrBufferFull) {
				if line, err = in.ReadSlice('\n'); len(long)+len(line) <= maxTranscriptLine {
					long = append(long, line...)
				} else {
					state.long = true
				}
			}
			line = long
		}
		state.last = errors.Is(err, io.EOF)
		if err != nil && !state.last {
			return fmt.Errorf("reading the transcript: %w", err)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if more, err := f(n, line, state); err != nil || !more {
				return err
			}
		}
		if state.last {
			return nil
		}
	}
}

// lineType returns the value of a JSON object's own key "type", without reading
// more than it must, and whether the object is closed at the line's end. It does
// not check what is in between.
func lineType(line []byte) (kind string, whole bool) {
	if len(line) < 2 || line[0] != '{' {
		return "", false
	}
	depth, key := 0, false
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '{', '[':
			depth++
			key = depth == 1
		case '}', ']':
			if depth--; depth == 0 {
				return kind, i == len(line)-1
			}
		case ',':
			key = depth == 1
		case '"':
			end := stringEnd(line, i+1)
			if end < 0 {
				return "", false
			}
			if key && kind == "" && string(line[i+1:end]) == "type" {
				kind = stringAfter(line[end+1:])
			}
			key = false
			i = end
		}
	}
	return "", false
}

// stringEnd is the place of the quote that ends a string.
func stringEnd(b []byte, from int) int {
	for i := from; ; {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		i += n
		escapes := 0
		for escapes < i-from && b[i-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
		i++
	}
}

// stringAfter is the string that follows a key, if one does.
func stringAfter(b []byte) string {
	b = bytes.TrimLeft(b, " \t:")
	if len(b) == 0 || b[0] != '"' {
		return ""
	}
	if end := stringEnd(b, 1); end > 0 {
		return string(b[1:end])
	}
	return ""
}

// placeID is the id of a message that has none of its own.
func placeID(place int) string {
	b := sha256.Sum256(fmt.Appendf(nil, "line %d", place))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // a UUID of version 8, RFC 9562: its maker's own
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
