package claude

import (
	"bytes"
	"encoding/json"
)

type userMessage struct {
	Type    string      `json:"type"`
	Message messageBody `json:"message"`
	UUID    string      `json:"uuid,omitempty"`
}

type messageBody struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type controlRequest struct {
	Type      string      `json:"type"`
	RequestID string      `json:"request_id"`
	Request   controlBody `json:"request"`
}

type controlBody struct {
	Subtype string `json:"subtype"`
	TaskID  string `json:"task_id,omitempty"`
}

// UserMessage is the line, newline included, that gives the prompt to the CLI.
// A uuid makes it idempotent: the CLI does not run the same one again.
func UserMessage(uuid, prompt string) []byte {
	return encode(userMessage{Type: "user", Message: messageBody{Role: "user", Content: prompt}, UUID: uuid})
}

// Interrupt is the line that ends the turn in progress, with its running tool.
// The CLI answers with an aborted result and could go on with another turn.
func Interrupt(id string) []byte {
	return encode(controlRequest{Type: "control_request", RequestID: id, Request: controlBody{Subtype: "interrupt"}})
}

// StopTask is the line that ends one background task. The CLI makes no
// follow-up turn for a task that was ended so.
func StopTask(id, taskID string) []byte {
	return encode(controlRequest{Type: "control_request", RequestID: id, Request: controlBody{Subtype: "stop_task", TaskID: taskID}})
}

// encode writes v as one line without escaping what only HTML needs.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // strings and structs of strings always encode
	return b.Bytes()
}
