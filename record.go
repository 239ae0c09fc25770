package stromboli

import "time"

// Submission is a spec on its way to becoming a run.
type Submission struct {
	Spec RunSpec
	Kind Kind
	// Idempotency names an earlier submission that this one may repeat; its
	// Key is empty when the caller gave none. Its tenant is the principal's.
	Idempotency Idempotency
	// ResumeIfExists: the session named in the spec is resumed if it exists
	// and created otherwise.
	ResumeIfExists bool
}

// Idempotency identifies a request that a caller may send more than once.
type Idempotency struct {
	Tenant   string
	Endpoint string
	Key      string
	Hash     string // of the decoded body
}

// NewRun is a run to be created. Exactly one of CreateSession and
// ResumeSession is set.
type NewRun struct {
	Run           Run // Status is Pending or Running
	Events        []Event
	Idempotency   *Idempotency
	CreateSession *Session
	ResumeSession string
	MaxQueued     int // pending runs above this: QueueFull
}

// RunFilter selects runs of a list; zero fields don't select.
type RunFilter struct {
	Tenant    string
	Kinds     []Kind
	Statuses  []Status
	SessionID string
	Since     time.Time
	Metadata  map[string]string
	Limit     int
	Cursor    string
}

// RunUpdate changes an active run; nil fields stay as they are. Events are
// appended in the same transaction.
type RunUpdate struct {
	Phase        *Phase
	SandboxID    *string
	AgentStarted *bool
	ImageDigest  *string
	Warnings     []Warning // added
	Events       []Event
}

// CancelRequest is the wish to end a run; a pending one ends at once.
type CancelRequest struct {
	Tenant string
	RunID  string
	Reason Reason // ReasonRequest or ReasonDisconnect
}

// RunFinish ends a run: its outcome, its last events (the store adds
// run.finished), and what its session keeps.
type RunFinish struct {
	Outcome Outcome
	Events  []Event
	Session SessionSave
}

// SessionSave is what a run leaves in its session. TranscriptKey is empty when
// no transcript was saved; else ExpectVersion is the version that it replaces.
type SessionSave struct {
	CLISessionID  string
	UID, GID      int
	TranscriptKey string
	ExpectVersion int64
}
