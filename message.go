package stromboli

import (
	"encoding/json"
	"time"
)

// SessionFilter selects sessions of a list; zero fields don't select.
type SessionFilter struct {
	Tenant string
	Alias  string
	Since  time.Time // made then or later
	Active *bool     // whether a run holds it
	Limit  int
	Cursor string
}

// Message is one entry of a session's conversation, as its transcript has it.
// Tools' answers are messages of the user's.
type Message struct {
	// UUID is the entry's own. Entries that have none (queue-operation) get one
	// that is made of their place in the transcript.
	UUID       string    `json:"uuid"`
	ParentUUID string    `json:"parent_uuid,omitempty"` // may be an entry that is no message
	SessionID  string    `json:"session_id"`
	Type       string    `json:"type"` // user, assistant or queue-operation
	Timestamp  time.Time `json:"timestamp,omitzero"`

	CWD            string `json:"cwd,omitempty"`
	GitBranch      string `json:"git_branch,omitempty"`
	PermissionMode string `json:"permission_mode,omitempty"`
	Version        string `json:"version,omitempty"` // of the agent CLI

	Content    MessageContent `json:"content"`
	ToolResult *ToolResult    `json:"tool_result,omitempty"`

	// Truncated: texts were cut because the page would have been too large; the
	// message alone has them whole.
	Truncated bool `json:"truncated,omitempty"`
}

// MessageContent is what was said.
type MessageContent struct {
	Role       string         `json:"role"`
	Content    []MessageBlock `json:"content"` // never nil
	MessageID  string         `json:"message_id,omitempty"`
	Model      string         `json:"model,omitempty"`
	StopReason string         `json:"stop_reason,omitempty"`
	Usage      *MessageUsage  `json:"usage,omitempty"`
}

// MessageUsage are the tokens that the model's answer took. One answer may be
// several messages, one per block, and each tells of the whole.
type MessageUsage struct {
	InputTokens              int64 `json:"input_tokens"`
	OutputTokens             int64 `json:"output_tokens"`
	CacheCreationInputTokens int64 `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     int64 `json:"cache_read_input_tokens"`
}

// MessageBlock is a part of a message. Type is text, tool_use, tool_result, or
// another of the model's API; of those the text is kept, where there is one.
type MessageBlock struct {
	Type      string          `json:"type"`
	Text      string          `json:"text,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Input     json.RawMessage `json:"input,omitempty"` // an object
	ToolUseID string          `json:"tool_use_id,omitempty"`
	Content   string          `json:"content,omitempty"` // of a tool's answer, as text
	IsError   bool            `json:"is_error,omitempty"`
}

// ToolResult is what a command printed.
type ToolResult struct {
	Stdout      string `json:"stdout"`
	Stderr      string `json:"stderr"`
	Interrupted bool   `json:"interrupted"`
	IsImage     bool   `json:"is_image"`
}

// MessagePage is a part of a conversation.
type MessagePage struct {
	Messages []Message // never nil
	Total    int       // of the whole conversation
}
