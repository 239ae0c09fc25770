package stromboli

import "time"

// AuditStage is which part of a request an audit record tells of.
type AuditStage string

// The stages.
const (
	// AuditIntent is durable before anything is done.
	AuditIntent AuditStage = "intent"
	// AuditOutcome is durable before the answer. An intent without one: the server
	// died in between, and what was asked for may have been done.
	AuditOutcome AuditStage = "outcome"
	// AuditEvent is what has no intent: refused credentials, the server's own
	// doings.
	AuditEvent AuditStage = "event"
)

// What became of what was asked for.
const (
	AuditOK      = "ok"
	AuditRefused = "refused" // for a reason that is the caller's; nothing was done
	AuditFailed  = "failed"  // for one that is the server's
)

// AuditRecord tells who did what to which object, from where, and what became of
// it. It never holds a prompt, an output, a secret or a token.
type AuditRecord struct {
	Seq    uint64     `json:"seq"` // 1, 2, 3… over all files
	At     time.Time  `json:"at"`
	Stage  AuditStage `json:"stage"`
	Intent uint64     `json:"intent,omitempty"` // of an outcome: its intent's Seq
	Action string     `json:"action"`           // such as run.submit
	// Tenant is empty where nobody knows whose doing it is.
	Tenant    string `json:"tenant,omitempty"`
	Principal string `json:"principal,omitempty"` // the API token's name
	Client    string `json:"client,omitempty"`    // client_id of the login that was made with it
	From      string `json:"from,omitempty"`      // the caller's address
	RequestID string `json:"request_id,omitempty"`
	Object    string `json:"object,omitempty"` // the id or name of what is acted on
	Outcome   string `json:"outcome,omitempty"`
	Code      Code   `json:"code,omitempty"` // of an outcome that is not ok
	// Detail is what else the action's readers need.
	Detail map[string]string `json:"detail,omitempty"`
	// Prev is the hash of the record before, Hash this one's.
	Prev string `json:"prev"`
	Hash string `json:"hash"`
}

// AuditFilter selects audit records. Zero fields select all.
type AuditFilter struct {
	// Tenant's records; Server: also those of none.
	Tenant string
	Server bool

	After        uint64 // those whose Seq is greater
	Since, Until time.Time
	Principal    string // the API token's name, or the client_id
	Action       string // the action, or all that begin so where it ends with a dot
	Object       string
	Limit        int
}

// AuditPage is a part of the audit log, oldest first.
type AuditPage struct {
	Records []AuditRecord
	// Next is the After of the next page. A page may hold fewer records than
	// asked for, even none, and More be true: one answer looks at a bounded part.
	Next uint64
	More bool
}
