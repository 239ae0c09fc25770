package egress

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// maxUsageText bounds what is kept of an answer to count its tokens: a line of
// a stream, or a whole answer that is none. A longer one passes uncounted.
const maxUsageText = 1 << 20

// meter counts the tokens of a model's answer while it passes, and changes
// nothing of it.
type meter struct {
	io.ReadCloser
	stream bool
	text   []byte // the unfinished line, or the whole answer
	over   bool   // the line is too long: it is passed over
	usage  *stromboli.Usage
	done   func(*stromboli.Usage)
}

// measure makes an answer's usage known to done, once it has been read.
func measure(r *http.Response, done func(*stromboli.Usage)) {
	kind := r.Header.Get("Content-Type")
	stream := strings.HasPrefix(kind, "text/event-stream")
	if r.StatusCode != http.StatusOK || r.Header.Get("Content-Encoding") != "" || (!stream && !strings.HasPrefix(kind, "application/json")) {
		return
	}
	r.Body = &meter{ReadCloser: r.Body, stream: stream, done: done}
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.take(p[:n])
	if err != nil {
		if !m.stream {
			m.line(m.text)
			m.text = nil
		}
		m.done(m.usage)
	}
	return n, err //nolint:wrapcheck // the body's own
}

// Close implements io.Closer.
func (m *meter) Close() error {
	m.done(m.usage)
	return m.ReadCloser.Close() //nolint:wrapcheck // the body's own
}

func (m *meter) take(p []byte) {
	for len(p) > 0 {
		i := -1
		if m.stream {
			i = bytes.IndexByte(p, '\n')
		}
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if len(m.text)+len(part) > maxUsageText {
			m.over, m.text = true, nil
		}
		if !m.over {
			m.text = append(m.text, part...)
		}
		if i < 0 {
			return
		}
		if data, ok := bytes.CutPrefix(m.text, []byte("data:")); ok && !m.over {
			m.line(data)
		}
		m.text, m.over = m.text[:0], false
		p = p[i+1:]
	}
}

// counts is the usage of a message or of the part of it that has come.
type counts struct {
	Input         *int64 `json:"input_tokens"`
	Output        *int64 `json:"output_tokens"`
	CacheCreation *int64 `json:"cache_creation_input_tokens"`
	CacheRead     *int64 `json:"cache_read_input_tokens"`
}

// line takes one event's data, or the whole answer. Usage in message_delta is
// that of the whole message so far, and replaces what message_start said.
func (m *meter) line(data []byte) {
	if !bytes.Contains(data, []byte(`"usage"`)) {
		return
	}
	var ev struct {
		Type    string `json:"type"`
		Model   string `json:"model"`
		Usage   counts `json:"usage"`
		Message struct {
			Model string `json:"model"`
			Usage counts `json:"usage"`
		} `json:"message"`
	}
	if json.Unmarshal(data, &ev) != nil {
		return
	}
	c, model := ev.Usage, ev.Model
	switch ev.Type {
	case "message_start":
		c, model = ev.Message.Usage, ev.Message.Model
	case "message_delta", "message":
	default:
		return // what an agent was told may look like usage
	}
	if m.usage == nil {
		m.usage = &stromboli.Usage{}
	}
	u := m.usage
	if model != "" {
		u.Model = clip(model)
	}
	for _, n := range []struct {
		from *int64
		to   *int64
	}{{c.Input, &u.InputTokens}, {c.Output, &u.OutputTokens}, {c.CacheCreation, &u.CacheCreationInputTokens}, {c.CacheRead, &u.CacheReadInputTokens}} {
		if n.from != nil && *n.from >= 0 {
			*n.to = *n.from
		}
	}
	u.TotalTokens = u.InputTokens + u.OutputTokens + u.CacheCreationInputTokens + u.CacheReadInputTokens
}
