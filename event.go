package stromboli

import (
	"encoding/json"
	"time"
)

// EventType names what happened. Clients ignore types they don't know.
type EventType string

// The vocabulary of events.
const (
	EventRunCreated      EventType = "run.created"
	EventRunStarted      EventType = "run.started"
	EventRunFinished     EventType = "run.finished"
	EventPhase           EventType = "phase"
	EventOutput          EventType = "output"
	EventText            EventType = "text"
	EventSuperseded      EventType = "superseded"
	EventCut             EventType = "cut"
	EventBackgroundEnded EventType = "background_ended"
	EventWarning         EventType = "warning"
	EventImageProgress   EventType = "image.progress"
	EventEgressDenied    EventType = "egress.denied"
	EventNetworkChanged  EventType = "network.changed"
	EventTruncated       EventType = "truncated"
)

// MaxInlineData is the size in bytes above which an event's data is not sent
// inline but by reference (CutData).
const MaxInlineData = 1 << 20

// Event is one thing that happened in a run. Seq counts 1, 2, 3, … per run
// without gaps.
type Event struct {
	Seq   int64           `json:"seq"`
	RunID string          `json:"run_id"`
	Type  EventType       `json:"type"`
	At    time.Time       `json:"at"`
	Data  json.RawMessage `json:"data"`

	// Line is the number of the spool line that the event was made from and
	// Index its place among that line's events; Line is 0 for events that the
	// server made itself.
	Line  int64 `json:"-"`
	Index int   `json:"-"`
}

// OutputData is the data of an output event: one line of the CLI, verbatim,
// without its newline. Bytes that are not UTF-8 are replaced by U+FFFD.
type OutputData struct {
	Stream string `json:"stream"` // "stdout" or "stderr"
	Line   string `json:"line"`
}

// TextData is the data of a text event: a delta of the assistant's answer.
type TextData struct {
	Text string `json:"text"`
}

// PhaseData is the data of a phase event.
type PhaseData struct {
	Phase Phase `json:"phase"`
	// Timing comes with the phase generating of a run that had not to wait.
	Timing *StartTiming `json:"timing,omitempty"`
}

// StartTiming says what a run's start took, in microseconds.
type StartTiming struct {
	// TotalUS is from the request's arrival to the message on the agent's
	// standard input.
	TotalUS int64 `json:"total_us"`
	// EngineUS is the part of it in which the container engine made and
	// started the container, until the sandbox's shim said hello.
	EngineUS int64 `json:"engine_us"`
}

// WarningData is the data of a warning event.
type WarningData struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// CutLineData is the data of a cut event: a line of the CLI was longer than
// the limit. Line is the spool line's number.
type CutLineData struct {
	Line    int64 `json:"line"`
	Kept    int64 `json:"kept"`
	Dropped int64 `json:"dropped"`
}

// TruncatedData is the data of a truncated event: the positions From to To are
// gone; the stream goes on after them.
type TruncatedData struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// BackgroundEndedData is the data of a background_ended event.
type BackgroundEndedData struct {
	Tasks []BackgroundTask `json:"tasks"`
}

// BackgroundTask is a task that the agent left running in the background.
type BackgroundTask struct {
	ID          string `json:"id"`
	Type        string `json:"type,omitempty"`
	Description string `json:"description,omitempty"`
}

// StartedData is the data of a run.started event.
type StartedData struct {
	Sandbox     string `json:"sandbox"`
	Start       string `json:"start"` // cold, warm_sandbox, warm_agent or kept
	Image       string `json:"image"`
	ImageDigest string `json:"image_digest,omitempty"`
	UID         int    `json:"uid"`
	GID         int    `json:"gid"`
	// Attestation is what is in force, in short.
	Attestation *AttestationSummary `json:"attestation,omitempty"`
}

// CutData stands in for an event's data above MaxInlineData.
type CutData struct {
	Cut   bool   `json:"cut"`
	Bytes int64  `json:"bytes"`
	Href  string `json:"href"`
}
