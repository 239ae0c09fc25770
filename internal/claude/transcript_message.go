package claude

import (
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// transcriptLine is a message as the CLI writes it. What has another shape than
// it should is left out; the CLI's versions differ, and an agent may have written
// into the file.
type transcriptLine struct {
	UUID           lenient[string]       `json:"uuid"`
	ParentUUID     lenient[string]       `json:"parentUuid"`
	SessionID      lenient[string]       `json:"sessionId"`
	Type           string                `json:"type"`
	Timestamp      lenient[time.Time]    `json:"timestamp"`
	CWD            lenient[string]       `json:"cwd"`
	GitBranch      lenient[string]       `json:"gitBranch"`
	PermissionMode lenient[string]       `json:"permissionMode"`
	Version        lenient[string]       `json:"version"`
	Content        json.RawMessage       `json:"content"` // of a queue-operation
	ToolUseResult  lenient[entryTool]    `json:"toolUseResult"`
	Message        lenient[entryMessage] `json:"message"`
}

type entryMessage struct {
	Role       lenient[string]     `json:"role"`
	Content    json.RawMessage     `json:"content"`
	ID         lenient[string]     `json:"id"`
	Model      lenient[string]     `json:"model"`
	StopReason lenient[string]     `json:"stop_reason"`
	Usage      lenient[entryUsage] `json:"usage"`
}

type entryUsage struct {
	Input         lenient[int64] `json:"input_tokens"`
	Output        lenient[int64] `json:"output_tokens"`
	CacheCreation lenient[int64] `json:"cache_creation_input_tokens"`
	CacheRead     lenient[int64] `json:"cache_read_input_tokens"`
}

type entryBlock struct {
	Type      lenient[string] `json:"type"`
	Text      lenient[string] `json:"text"`
	Thinking  lenient[string] `json:"thinking"`
	ID        lenient[string] `json:"id"`
	Name      lenient[string] `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID lenient[string] `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
	IsError   lenient[bool]   `json:"is_error"`
}

type entryTool struct {
	Stdout      lenient[string] `json:"stdout"`
	Stderr      lenient[string] `json:"stderr"`
	Interrupted lenient[bool]   `json:"interrupted"`
	IsImage     lenient[bool]   `json:"isImage"`
}

// lenient is a value that is its zero where the JSON has another type.
type lenient[T any] struct {
	v   T
	set bool
}

// UnmarshalJSON never fails: the JSON is well-formed by then.
func (l *lenient[T]) UnmarshalJSON(b []byte) error {
	var v T
	if string(b) != "null" && json.Unmarshal(b, &v) == nil {
		l.v, l.set = v, true
	}
	return nil
}

// parseMessage makes a message of a line whose type is a message's.
func parseMessage(place int, line []byte) stromboli.Message {
	var in transcriptLine
	if err := json.Unmarshal(line, &in); err != nil {
		in = transcriptLine{}
		in.Type, _ = lineType(line)
	}
	m := stromboli.Message{
		UUID: in.UUID.v, ParentUUID: in.ParentUUID.v, SessionID: in.SessionID.v, Type: in.Type, Timestamp: in.Timestamp.v.UTC(),
		CWD: in.CWD.v, GitBranch: in.GitBranch.v, PermissionMode: in.PermissionMode.v, Version: in.Version.v,
	}
	if m.UUID == "" {
		m.UUID = placeID(place)
	}
	entry := in.Message.v
	m.Content = stromboli.MessageContent{
		Role: entry.Role.v, MessageID: entry.ID.v, Model: entry.Model.v, StopReason: entry.StopReason.v,
	}
	m.Content.Content = parseBlocks(entry.Content)
	if in.Type == "queue-operation" {
		m.Content.Role, m.Content.Content = "user", parseBlocks(in.Content)
	}
	if u := entry.Usage; u.set {
		m.Content.Usage = &stromboli.MessageUsage{
			InputTokens: u.v.Input.v, OutputTokens: u.v.Output.v,
			CacheCreationInputTokens: u.v.CacheCreation.v, CacheReadInputTokens: u.v.CacheRead.v,
		}
	}
	if t := in.ToolUseResult.v; t.Stdout.set || t.Stderr.set {
		m.ToolResult = &stromboli.ToolResult{Stdout: t.Stdout.v, Stderr: t.Stderr.v, Interrupted: t.Interrupted.v, IsImage: t.IsImage.v}
	}
	return m
}

// parseBlocks reads content: a string is one block of text.
func parseBlocks(content json.RawMessage) []stromboli.MessageBlock {
	blocks := []stromboli.MessageBlock{}
	var text string
	if json.Unmarshal(content, &text) == nil {
		if len(content) > 0 && string(content) != "null" {
			blocks = append(blocks, stromboli.MessageBlock{Type: "text", Text: text})
		}
		return blocks
	}
	var list []lenient[entryBlock]
	_ = json.Unmarshal(content, &list)
	for _, l := range list {
		in := l.v
		if in.Type.v == "" {
			continue
		}
		b := stromboli.MessageBlock{
			Type: in.Type.v, Text: in.Text.v, ID: in.ID.v, Name: in.Name.v,
			ToolUseID: in.ToolUseID.v, Content: flatten(in.Content), IsError: in.IsError.v,
		}
		if b.Type == "thinking" {
			b.Text = in.Thinking.v
		}
		if len(in.Input) > 0 && in.Input[0] == '{' {
			b.Input = in.Input
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// flatten makes one text of a tool's answer, which is a string or a list of
// blocks; for one that is no text stands its type.
func flatten(content json.RawMessage) string {
	var text string
	if json.Unmarshal(content, &text) == nil {
		return text
	}
	var list []lenient[entryBlock]
	_ = json.Unmarshal(content, &list)
	var parts []string
	for _, l := range list {
		switch b := l.v; {
		case b.Type.v == "text":
			parts = append(parts, b.Text.v)
		case b.Type.v != "":
			parts = append(parts, "["+b.Type.v+"]")
		}
	}
	return strings.Join(parts, "\n")
}

// cutMessage cuts a message's long texts.
func cutMessage(m *stromboli.Message) {
	cut := func(s *string) {
		if len(*s) <= cutBytes {
			return
		}
		n := cutBytes
		for n > 0 && !utf8.RuneStart((*s)[n]) {
			n--
		}
		*s, m.Truncated = strings.Clone((*s)[:n]), true
	}
	for i := range m.Content.Content {
		b := &m.Content.Content[i]
		cut(&b.Text)
		cut(&b.Content)
		if len(b.Input) > cutBytes {
			b.Input, m.Truncated = json.RawMessage(`{}`), true
		}
	}
	if m.ToolResult != nil {
		cut(&m.ToolResult.Stdout)
		cut(&m.ToolResult.Stderr)
	}
}
