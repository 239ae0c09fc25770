package claude

import (
	"bytes"
	"encoding/json"
	"strings"
)

// object is one line of the CLI, taken apart one level deep.
type object map[string]json.RawMessage

// parse takes a line apart. cut tells that the line was no whole JSON object
// and only its beginning could be read. ok is false for everything else, such
// as plain text.
func parse(line []byte) (o object, cut, ok bool) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] != '{' {
		return nil, false, false
	}
	if err := json.Unmarshal(line, &o); err == nil {
		return o, false, true
	}
	o = salvage(line)
	return o, true, len(o) > 0
}

// salvage reads the fields of an object whose end is missing. A string that was
// cut is kept as far as it goes.
func salvage(line []byte) object {
	o := object{}
	d := json.NewDecoder(bytes.NewReader(line))
	if _, err := d.Token(); err != nil {
		return o
	}
	for d.More() {
		t, err := d.Token()
		key, isKey := t.(string)
		if err != nil || !isKey {
			return o
		}
		start := d.InputOffset()
		var v json.RawMessage
		if err := d.Decode(&v); err == nil {
			o[key] = v
			continue
		}
		rest := bytes.TrimLeft(line[start:], ": \t")
		if s, ok := closeString(rest); ok {
			o[key] = s
		}
		return o
	}
	return o
}

// closeString puts the missing quote behind a JSON string, giving up the
// escape sequence that the cut may have split.
func closeString(b []byte) (json.RawMessage, bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, false
	}
	const longestEscape = len(`\ud83d\ude00`)
	s := append(bytes.Clone(b), '"')
	for range longestEscape + 1 {
		if json.Valid(s) {
			return s, true
		}
		if len(s) <= 2 {
			break
		}
		s = s[:len(s)-1]
		s[len(s)-1] = '"'
	}
	return nil, false
}

// get reads one field; a missing field, null or another type gives zero.
func get[T any](o object, key string) T {
	var v, zero T
	raw, ok := o[key]
	if !ok || json.Unmarshal(raw, &v) != nil {
		return zero
	}
	return v
}

func (o object) kind() (string, string) { return get[string](o, "type"), get[string](o, "subtype") }

// main reports whether a line belongs to the main conversation and not to a
// subagent's.
func (o object) main() bool { return get[string](o, "parent_tool_use_id") == "" }

// result reports whether this is a result line. A cut one is recognised by
// fields that stand before the long ones.
func (o object) result(cut bool) bool {
	t, sub := o.kind()
	if t == "result" {
		return true
	}
	_, reason := o["terminal_reason"]
	_, failed := o["is_error"]
	return cut && t == "" && sub != "" && reason && failed
}

// block is a part of a message's content.
type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type message struct {
	ID      string          `json:"id"`
	Model   string          `json:"model"`
	Content json.RawMessage `json:"content"`
	Usage   apiUsage        `json:"usage"`
}

type apiUsage struct {
	Input         int64 `json:"input_tokens"`
	Output        int64 `json:"output_tokens"`
	CacheCreation int64 `json:"cache_creation_input_tokens"`
	CacheRead     int64 `json:"cache_read_input_tokens"`
}

// blocks gives a message's content; content that is a plain string is one
// text block.
func (m message) blocks() []block {
	var list []block
	if json.Unmarshal(m.Content, &list) == nil {
		return list
	}
	var text string
	if json.Unmarshal(m.Content, &text) == nil {
		return []block{{Type: "text", Text: text}}
	}
	return nil
}

// AssistantText gives the completed text of an assistant line, split into
// lines without their newlines: what a text stream shows. It is empty for all
// other lines and for what subagents say.
func AssistantText(line []byte) []string {
	o, _, ok := parse(line)
	if !ok {
		return nil
	}
	if t, _ := o.kind(); t != "assistant" || !o.main() {
		return nil
	}
	var lines []string
	for _, b := range get[message](o, "message").blocks() {
		if b.Type != "text" || b.Text == "" {
			continue
		}
		text := strings.ReplaceAll(b.Text, "\r\n", "\n")
		lines = append(lines, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
	}
	return lines
}

// Visible reports whether the CLI would print this line of its standard output
// to somebody who runs it with a prompt and --output-format=stream-json. Lines
// that are only there because it is driven by messages are not.
func Visible(line []byte) bool {
	o, _, ok := parse(line)
	return !ok || visible(o)
}

func visible(o object) bool {
	switch t, _ := o.kind(); t {
	case "control_request", "control_response", "control_cancel_request", "command_lifecycle", "keep_alive":
		return false
	default:
		return true
	}
}
