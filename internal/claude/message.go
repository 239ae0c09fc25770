package claude

import (
	"bytes"
	"encoding/json"

	"github.com/tomblancdev/stromboli"
)

type userMessage struct {
	Type    string      `json:"type"`
	Message messageBody `json:"message"`
	UUID    string      `json:"uuid,omitempty"`
}

type messageBody struct {
	Role    string `json:"role"`
	Content any    `json:"content"` // a string, or a list of blocks
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

// UserMessage is the line, newline included, that gives the run's message to
// the CLI. A uuid makes it idempotent: the CLI does not run the same one again.
// The spec has passed ValidateInput.
func UserMessage(uuid string, spec stromboli.RunSpec) []byte {
	return encode(userMessage{Type: "user", Message: messageBody{Role: "user", Content: contentOf(spec)}, UUID: uuid})
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
