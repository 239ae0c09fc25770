package modelstub

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// directive begins a script inside a prompt's text; a JSON object follows.
const directive = "stub:"

const maxCounted = 10_000

// Script is what a directive holds:
//
//	stub: {"key":"my-run","steps":[
//	  {"text":"I look.","tool_use":{"name":"Bash","input":{"command":"ls"}}},
//	  {"text":"Done."}]}
//
// Step n answers the request in which n assistant turns follow the prompt.
// Beyond the last step the server answers as if there were no directive.
type Script struct {
	// Key marks the requests of this script in the record.
	Key   string `json:"key,omitempty"`
	Steps []Step `json:"steps"`
	raw   string
}

// Step is one answer of the model.
type Step struct {
	// Thinking, Text and ToolUse are a short form of Blocks, in this order.
	Thinking string   `json:"thinking,omitempty"`
	Text     string   `json:"text,omitempty"`
	ToolUse  *ToolUse `json:"tool_use,omitempty"`
	// Blocks are content blocks of which each has one of the three; they
	// follow those of the short form.
	Blocks []Block `json:"blocks,omitempty"`
	// Bytes makes the last text block this long, by repeating its text or a
	// line of digits.
	Bytes int64 `json:"bytes,omitempty"`
	// StopReason is end_turn by default, or tool_use where a tool is used.
	StopReason string `json:"stop_reason,omitempty"`

	// DelayMS is the silence before the answer's first byte, PaceMS the pause
	// after each delta, Chunk the number of bytes in a delta.
	DelayMS int64 `json:"delay_ms,omitempty"`
	PaceMS  int64 `json:"pace_ms,omitempty"`
	Chunk   int   `json:"chunk,omitempty"`

	// Status other than 0 and 200 answers with an error, with Headers and
	// with Error where the usual one of that status will not do.
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Error   *APIError         `json:"error,omitempty"`
	// Hang never finishes: "before" sends nothing at all, "after" sends the
	// blocks but not the end. It lasts until the client goes.
	Hang string `json:"hang,omitempty"`
	// Cut closes the connection in mid-answer.
	Cut *Cut `json:"cut,omitempty"`
	// Times bounds how often Status, Hang, Cut and DelayMS hold for this step
	// of this session; later requests get the step without them. Zero: always.
	Times int `json:"times,omitempty"`
}

// Block is one content block.
type Block struct {
	Thinking string   `json:"thinking,omitempty"`
	Text     string   `json:"text,omitempty"`
	ToolUse  *ToolUse `json:"tool_use,omitempty"`
}

// ToolUse asks the agent to use a tool. ID is made up where it is empty.
type ToolUse struct {
	ID    string          `json:"id,omitempty"`
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
}

// Cut says where the connection closes: after that many whole blocks, and that
// many deltas of the next one. Both zero: right after message_start.
type Cut struct {
	Blocks int `json:"blocks,omitempty"`
	Deltas int `json:"deltas,omitempty"`
	// AfterMS is a silence before the cut, in which a client can act on what
	// it has: a tool starts before its message ends.
	AfterMS int64 `json:"after_ms,omitempty"`
}

// blocks returns the step's content in order.
func (s Step) blocks() []Block {
	var bs []Block
	if s.Thinking != "" {
		bs = append(bs, Block{Thinking: s.Thinking})
	}
	if s.Text != "" || (s.Bytes > 0 && len(s.Blocks) == 0) {
		bs = append(bs, Block{Text: s.Text})
	}
	if s.ToolUse != nil {
		bs = append(bs, Block{ToolUse: s.ToolUse})
	}
	return append(bs, s.Blocks...)
}

func (s Step) stopReason() string {
	if s.StopReason != "" {
		return s.StopReason
	}
	for _, b := range s.blocks() {
		if b.ToolUse != nil {
			return "tool_use"
		}
	}
	return "end_turn"
}

func (s Step) faulty() bool {
	return s.Hang != "" || s.Cut != nil || s.DelayMS > 0 || (s.Status != 0 && s.Status != 200)
}

func (s Step) healed() Step {
	s.Hang, s.Cut, s.DelayMS, s.Status, s.Error = "", nil, 0, 0, nil
	return s
}

func (s Step) validate() error {
	switch {
	case s.Hang != "" && s.Hang != "before" && s.Hang != "after":
		return fmt.Errorf("hang: %q is neither before nor after", s.Hang)
	case s.Status != 0 && (s.Status < 200 || s.Status > 599):
		return fmt.Errorf("status: %d is not 200 to 599", s.Status)
	case s.Bytes < 0 || s.Bytes > 1<<30:
		return fmt.Errorf("bytes: %d is not 0 to 1 GiB", s.Bytes)
	case s.Chunk < 0 || s.Chunk > 1<<20:
		return fmt.Errorf("chunk: %d is not 0 to 1 MiB", s.Chunk)
	}
	for _, b := range s.blocks() {
		if b.ToolUse != nil && b.ToolUse.Name == "" {
			return fmt.Errorf("tool_use: without a name")
		}
	}
	return nil
}

// parseScript finds the directive in a prompt's text. It reports false where
// there is none, and an error where there is one that can't be read.
func parseScript(text string) (Script, bool, error) {
	for rest := text; ; {
		_, after, ok := strings.Cut(rest, directive)
		if !ok {
			return Script{}, false, nil
		}
		rest = after
		object := strings.TrimLeft(after, " \t\r\n")
		if !strings.HasPrefix(object, "{") {
			continue // prose that mentions the word
		}
		dec := json.NewDecoder(strings.NewReader(object))
		dec.DisallowUnknownFields()
		var s Script
		if err := dec.Decode(&s); err != nil {
			return Script{}, true, fmt.Errorf("reading it: %w", err)
		}
		for i, step := range s.Steps {
			if err := step.validate(); err != nil {
				return Script{}, true, fmt.Errorf("steps[%d].%w", i, err)
			}
		}
		s.raw = object[:dec.InputOffset()]
		return s, true, nil
	}
}

// misbehaveAgain counts one more fault of a step, unless it had enough.
func (s *Server) misbehaveAgain(script Script, at int, session string, times int) bool {
	key := sha256.Sum256([]byte(strconv.Itoa(at) + "\x00" + session + "\x00" + script.raw))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) >= maxCounted {
		clear(s.faults)
	}
	if s.faults[key] >= times {
		return false
	}
	s.faults[key]++
	return true
}
