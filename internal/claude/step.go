package claude

import (
	"encoding/json"
	"unicode/utf8"
)

// Step is what one line of the CLI tells of the course of a run. Nothing of what
// was said, asked of a tool or answered by one is in it.
type Step struct {
	// Within is the call of the tool in which a subagent works; empty for the main
	// conversation.
	Within string
	// Model is the model's name, where the line begins the CLI's work (init) or is
	// part of an answer.
	Model string
	// Answer is the id of the model's answer of which the line is a part, and
	// Input the tokens that it was asked with, those from the cache included. The
	// tokens of the answer itself are not known before its end: no line has them.
	Answer string
	Input  InputTokens
	// Calls are the tools that the answer calls, Results those that came back.
	Calls   []ToolCall
	Results []ToolResult
	// Over: the CLI has given its result.
	Over bool
}

// InputTokens are those of one request to the model.
type InputTokens struct{ All, CacheRead, CacheCreation int64 }

// ToolCall is one call of a tool.
type ToolCall struct{ ID, Name string }

// ToolResult is the end of one.
type ToolResult struct {
	ID     string
	Failed bool
}

// maxSteps bounds the calls or results of one line; more than an answer has are
// a lie.
const maxSteps = 256

// StepOf reads a line of the CLI's standard output. ok is false where it tells
// nothing of the kind.
func StepOf(line []byte) (s Step, ok bool) {
	o, cut, ok := parse(line)
	if !ok {
		return Step{}, false
	}
	s.Within = name(get[string](o, "parent_tool_use_id"))
	if o.result(cut) {
		return Step{Over: true}, true
	}
	switch kind, sub := o.kind(); {
	case kind == "system" && sub == "init":
		s.Model = name(get[string](o, "model"))
	case kind == "assistant":
		m := get[message](o, "message")
		if m.ID == "" || m.Model == "<synthetic>" {
			return Step{}, false
		}
		u := apiUsage{}
		u.add(m.Usage)
		s.Answer, s.Model = name(m.ID), name(m.Model)
		s.Input = InputTokens{All: u.Input + u.CacheRead + u.CacheCreation, CacheRead: u.CacheRead, CacheCreation: u.CacheCreation}
		for _, b := range m.tools() {
			if b.Type == "tool_use" && b.ID != "" && len(s.Calls) < maxSteps {
				s.Calls = append(s.Calls, ToolCall{ID: name(b.ID), Name: name(b.Name)})
			}
		}
	case kind == "user":
		for _, b := range get[message](o, "message").tools() {
			if b.Type == "tool_result" && b.Of != "" && len(s.Results) < maxSteps {
				s.Results = append(s.Results, ToolResult{ID: name(b.Of), Failed: b.Failed})
			}
		}
	default:
		return Step{}, false
	}
	return s, true
}

// toolBlock is a part of a message's content that concerns a tool.
type toolBlock struct {
	Type   string `json:"type"`
	ID     string `json:"id"`
	Name   string `json:"name"`
	Of     string `json:"tool_use_id"`
	Failed bool   `json:"is_error"`
}

func (m message) tools() []toolBlock {
	var list []toolBlock
	if json.Unmarshal(m.Content, &list) != nil {
		return nil
	}
	return list
}

// name bounds what ought to be a short name, and doesn't let it be more: who
// reads it may show it as it is.
func name(s string) string {
	const limit = 128
	if len(s) > limit || !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f {
			return ""
		}
	}
	return s
}
