package modelstub

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// conversation is what matters of a Messages request.
type conversation struct {
	Model        string          `json:"model"`
	Stream       bool            `json:"stream"`
	MaxTokens    int             `json:"max_tokens"`
	System       content         `json:"system"`
	Messages     []message       `json:"messages"`
	Tools        []tool          `json:"tools"`
	OutputConfig json.RawMessage `json:"output_config"`
	size         int
}

type tool struct {
	Name string `json:"name"`
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a string or a list of blocks; a string becomes one text block.
type content []contentBlock

type contentBlock struct {
	Type    string  `json:"type"`
	Text    string  `json:"text"`
	Content content `json:"content"` // of a tool_result
	IsError bool    `json:"is_error"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *content) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		*c = content{{Type: "text", Text: s}}
		return nil
	}
	var bs []contentBlock
	if err := json.Unmarshal(data, &bs); err != nil {
		return fmt.Errorf("content is neither text nor a list of blocks: %w", err)
	}
	*c = bs
	return nil
}

func (c content) text() string {
	var parts []string
	for _, b := range c {
		if b.Type == "text" {
			parts = append(parts, b.Text)
		}
	}
	return strings.Join(parts, "\n")
}

func parseConversation(body []byte) (*conversation, error) {
	conv := &conversation{size: len(body)}
	if err := json.Unmarshal(body, conv); err != nil {
		return nil, fmt.Errorf("the body is not a Messages request: %w", err)
	}
	if len(conv.Messages) == 0 {
		return nil, fmt.Errorf("messages: at least one is needed")
	}
	return conv, nil
}

// script returns the script of the last prompt that has one, and the number of
// assistant turns after it; without a script the number is -1.
func (c *conversation) script() (Script, int, error) {
	for i := len(c.Messages) - 1; i >= 0; i-- {
		m := c.Messages[i]
		if m.Role != "user" {
			continue
		}
		if s, ok, err := parseScript(m.Content.text()); ok {
			return s, c.turnsAfter(i), err
		}
	}
	return Script{}, -1, nil
}

// turnsAfter counts the assistant's turns after message i; neighbouring
// assistant messages are one turn.
func (c *conversation) turnsAfter(i int) int {
	n, before := 0, ""
	for _, m := range c.Messages[i+1:] {
		if m.Role == "assistant" && before != "assistant" {
			n++
		}
		if m.Role != "system" { // the CLI tells of its environment between turns
			before = m.Role
		}
	}
	return n
}

// reminder is context that the CLI puts between the user's words.
var reminder = regexp.MustCompile(`(?s)<system-reminder>.*?</system-reminder>`)

// prompt returns the last thing that the user said, and its position.
func (c *conversation) prompt() (string, int) {
	for i := len(c.Messages) - 1; i >= 0; i-- {
		m := c.Messages[i]
		if m.Role != "user" || m.Content.has("tool_result") {
			continue
		}
		text := strings.TrimSpace(reminder.ReplaceAllString(m.Content.text(), ""))
		// The CLI says this by itself after an answer that was cut or refused.
		if text == "" || strings.HasPrefix(text, "Your response above was ") {
			continue
		}
		return text, i
	}
	return "", 0
}

// lastToolResult returns the text of the last tool result, and whether there is one.
func (c *conversation) lastToolResult(after int) (string, bool) {
	for i := len(c.Messages) - 1; i > after; i-- {
		for _, b := range c.Messages[i].Content {
			if b.Type == "tool_result" {
				return strings.TrimSpace(b.Content.text()), true
			}
		}
	}
	return "", false
}

func (c content) has(kind string) bool {
	for _, b := range c {
		if b.Type == kind {
			return true
		}
	}
	return false
}

func (c *conversation) hasTool(name string) bool {
	for _, t := range c.Tools {
		if t.Name == name {
			return true
		}
	}
	return false
}

var workdir = regexp.MustCompile(`(?i)(?:primary )?working directory: ?(/[^\n<]*)`)

// workdir returns the agent's working directory as the CLI tells the model, or "".
func (c *conversation) workdir() string {
	for i := len(c.Messages) - 1; i >= 0; i-- { // the last one holds: a resume may have moved
		if c.Messages[i].Role == "assistant" {
			continue
		}
		if m := workdir.FindStringSubmatch(c.Messages[i].Content.text()); m != nil {
			return strings.TrimSpace(m[1])
		}
	}
	if m := workdir.FindStringSubmatch(c.System.text()); m != nil {
		return strings.TrimSpace(m[1])
	}
	return ""
}

// auxiliary tells the CLI's own errands (a title for the session, a summary)
// from the agent's conversation: they offer no tools and have a system prompt
// of their own.
func (c *conversation) auxiliary() bool {
	if len(c.Tools) > 0 {
		return false
	}
	system := strings.ToLower(c.System.text())
	return strings.Contains(system, "title") && (strings.Contains(system, "session") || strings.Contains(system, "conversation"))
}

func (c *conversation) auxiliaryStep() Step {
	if len(c.OutputConfig) > 0 && strings.Contains(string(c.OutputConfig), `"title"`) {
		return Step{Text: `{"title":"A scripted session"}`}
	}
	return Step{Text: "A scripted session"}
}
