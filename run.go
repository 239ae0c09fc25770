package stromboli

import (
	"encoding/json"
	"time"
)

// Kind says how a run's caller waits for it.
type Kind string

// The kinds of runs.
const (
	KindSync   Kind = "sync"
	KindAsync  Kind = "async"
	KindStream Kind = "stream"
)

// Run is the durable record of one prompt given to one agent.
type Run struct {
	ID        string
	Tenant    string
	CreatedBy string
	Kind      Kind
	SessionID string
	// SessionAlias is the caller's name of the session, or empty.
	SessionAlias string
	Spec         RunSpec

	Status Status
	Phase  Phase // empty once the run has ended

	// Network is what the run may reach, complete: its spec's wish within
	// configuration, or what it was changed to since.
	Network Network
	// EgressSeq is the number, in the present sandbox, of the newest record of a
	// connection that is stored; EgressDenied how many of the run's were denied.
	EgressSeq    int64
	EgressDenied int64

	// SandboxID names the sandbox of the present attempt, empty before one is
	// made. AgentStarted is set, durably, before the agent's process is asked
	// for: from then on the run is never started again.
	SandboxID    string
	AgentStarted bool

	// CancelReason is the durable wish to end the run: request or disconnect,
	// empty while nobody wants that. It beats a later result.
	CancelReason Reason

	// Owner and Epoch name the server that executes the run; a write with an
	// old epoch changes nothing.
	Owner string
	Epoch int64

	CreatedAt   time.Time
	UpdatedAt   time.Time
	StartedAt   time.Time // zero while pending
	FinishedAt  time.Time // zero while active
	ImageDigest string
	Warnings    []Warning
	LastSeq     int64 // sequence of the newest event
	LastLine    int64 // newest spool line that is stored

	Outcome Outcome // meaningful once Status is terminal
}

// Warning tells the caller of something that did not stop the run.
type Warning struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Outcome is what a finished run leaves: its final status and everything that
// the answer to the caller is made of.
type Outcome struct {
	Status           Status          `json:"status"`
	Reason           Reason          `json:"reason,omitempty"`
	Error            string          `json:"error,omitempty"`
	Output           string          `json:"output"`
	SessionID        string          `json:"session_id"`
	StructuredOutput json.RawMessage `json:"structured_output,omitempty"`
	CrashInfo        *CrashInfo      `json:"crash_info,omitempty"`
	Usage            *Usage          `json:"usage,omitempty"`
	Warnings         []Warning       `json:"warnings,omitempty"`
}

// CrashInfo describes how an agent's process died.
type CrashInfo struct {
	ExitCode      int    `json:"exit_code"`
	Signal        string `json:"signal,omitempty"` // such as "SIGKILL"
	Reason        string `json:"reason,omitempty"`
	PartialOutput string `json:"partial_output,omitempty"`
	TaskCompleted bool   `json:"task_completed"`
}

// Usage counts what one run used at the model, tool rounds and subagents
// included. EstimatedCostUSD is the CLI's own estimate by list prices.
type Usage struct {
	Model                    string  `json:"model,omitempty"`
	InputTokens              int64   `json:"input_tokens"`
	OutputTokens             int64   `json:"output_tokens"`
	CacheCreationInputTokens int64   `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     int64   `json:"cache_read_input_tokens"`
	TotalTokens              int64   `json:"total_tokens"`
	EstimatedCostUSD         float64 `json:"estimated_cost_usd"`
}

// Session is a conversation and what belongs to it on disk.
type Session struct {
	ID        string // our UUID
	Tenant    string
	CreatedBy string

	// CLISessionID is the id under which the CLI keeps the transcript. It
	// starts out equal to ID and changes when the conversation is cleared.
	CLISessionID string

	// Alias is the caller's own name of the session, unique in its tenant.
	Alias string
	// Title is the beginning of what was asked first, on one line.
	Title string
	// Ephemeral: the session ends with its run, and nothing of it is kept.
	Ephemeral bool

	// ForkedFrom is the session that this one began as a copy of. Until the
	// copy is made ForkPending is set, and the source can't be resumed. ForkOf
	// is the CLI's conversation in the copy that the CLI has yet to fork into
	// CLISessionID; empty once it has.
	ForkedFrom  string
	ForkPending bool
	ForkOf      string

	ActiveRun string // id of the run that holds the session, or empty
	// Deleting: it is gone for everybody but whoever removes what belongs to it.
	Deleting bool

	// TranscriptVersion counts saved transcripts; a save names the version it
	// replaces. TranscriptKey is the blob that holds the newest one.
	TranscriptVersion int64
	TranscriptKey     string

	// RunCount and CostUSD are of all runs that the session has had, those that
	// retention has deleted included.
	RunCount int
	CostUSD  float64
	// Hooks are the create hooks of the session's first run, or of the session
	// that it is a fork of: each new sandbox of the session's begins with them.
	Hooks Lifecycle

	// UID and GID are the agent's in the session's last sandbox: the owner of
	// the files in its home and workspace. Zero before the first.
	UID, GID int

	// Kept is the session's sandbox while no run is in it, and of the run that
	// has it until that has ended.
	Kept KeptSandbox

	CreatedAt time.Time
	UpdatedAt time.Time
}

// KeptSandbox is a sandbox that waits for its session's next run, stopped. It
// may be gone all the same: others may remove its container.
type KeptSandbox struct {
	ID    string    // empty: there is none
	Since time.Time // when the run before has ended
	Until time.Time // when it is discarded, unless a run is in it
}
