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

// NewRun is a run to be created. Which session is its own is decided in the
// same transaction: the newest of a workspace (Continue), else that with an
// alias (SessionAlias), else that with an id (ResumeSession, or the run's
// SessionID). CreateSession and Fork say what may be made.
type NewRun struct {
	Run         Run // Status is Pending or Running
	Events      []Event
	Idempotency *Idempotency
	MaxQueued   int // pending runs above this: QueueFull

	// CreateSession is made if there is no such session; with Fork it is made
	// in any case, with the run's SessionID as its id. Without it the session
	// must exist.
	CreateSession *Session
	// ResumeSession is the id of the session to go on with, or, with Fork, to
	// copy.
	ResumeSession string
	// SessionAlias names the session in place of an id. Resume says that one
	// which exists is gone on with; else it is SessionExists.
	SessionAlias string
	Resume       bool
	// Continue is a workspace: go on with its newest conversation.
	Continue string
	// Fork: the run works on a copy of the session.
	Fork bool
	// Workspace is where the run works, for later calls with Continue. Empty:
	// the run is not remembered there.
	Workspace string

	// FirstEvents, if set, makes the run's first events in place of Events, once
	// the run's session is known. It is called in the transaction: it must be
	// quick and must not call the store.
	FirstEvents func(Run) []Event
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
	// Forked: the copy of the session's source is made. It is the CLI's
	// conversation in it that the CLI has yet to fork, or empty.
	Forked   *string
	Warnings []Warning // added
	Events   []Event
	// Egress are records of the present sandbox's connections, the one after the
	// run's EgressSeq first. A new SandboxID begins anew.
	Egress []EgressRecord
	// Attestation is what is in force for the run's sandbox.
	Attestation *Attestation
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
	// Kept, if set, is the sandbox that the session keeps from now on; a zero one
	// for none.
	Kept *KeptSandbox
}

// TranscriptUse is who needs blobs of transcripts.
type TranscriptUse struct {
	Keys map[string]bool // the newest of some session
	Busy map[string]bool // ids of sessions that a run holds
}
