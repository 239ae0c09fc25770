package stromboli

// Status is the state of a run. It moves along CanBecome and nowhere else.
type Status string

// The statuses. Failed: the CLI said so, or the spec could not be executed.
// Crashed: the agent's process died without a result.
const (
	Pending   Status = "pending"
	Running   Status = "running"
	Completed Status = "completed"
	Failed    Status = "failed"
	Crashed   Status = "crashed"
	Cancelled Status = "cancelled"
)

// Terminal reports whether no further status follows.
func (s Status) Terminal() bool {
	switch s {
	case Completed, Failed, Crashed, Cancelled:
		return true
	case Pending, Running:
		return false
	}
	return false
}

// CanBecome is the one transition table of runs.
func (s Status) CanBecome(next Status) bool {
	switch s {
	case Pending:
		return next == Running || next == Failed || next == Cancelled
	case Running:
		return next.Terminal()
	case Completed, Failed, Crashed, Cancelled:
		return false
	}
	return false
}

// Phase says what a run that has not ended is doing.
type Phase string

// The phases, in the order in which a run may go through them.
const (
	PhaseQueued          Phase = "queued"
	PhasePulling         Phase = "pulling"
	PhaseCreating        Phase = "creating"
	PhaseHooks           Phase = "hooks"
	PhaseStarting        Phase = "starting"
	PhaseGenerating      Phase = "generating"
	PhaseWaitingApproval Phase = "waiting_approval"
	PhaseWaitingBudget   Phase = "waiting_budget"
	PhaseCancelling      Phase = "cancelling"
	PhaseFinishing       Phase = "finishing"
)

// Reason says why a run ended as it did. A completed run has none.
type Reason string

// Reasons of failed runs.
const (
	ReasonTimeout       Reason = "timeout"        // the run passed its time limit
	ReasonOrphaned      Reason = "orphaned"       // no server for longer than the orphan timeout
	ReasonDisk          Reason = "disk"           // the disk is full, here or in the sandbox
	ReasonBudget        Reason = "budget"         // max_budget_usd was spent
	ReasonMaxTurns      Reason = "max_turns"      // max_turns was reached
	ReasonSchema        Reason = "schema"         // json_schema was not satisfied
	ReasonAuth          Reason = "auth"           // the model refused the credentials
	ReasonOverloaded    Reason = "overloaded"     // the model answered 429 or 529 to the end
	ReasonModel         Reason = "model"          // any other failure on the model's side
	ReasonHook          Reason = "hook"           // a lifecycle hook failed
	ReasonImage         Reason = "image"          // the image is missing or can't run the CLI
	ReasonNotEnforced   Reason = "not_enforced"   // a limit that was asked for can't be enforced
	ReasonEngine        Reason = "engine"         // the container engine failed
	ReasonNotConfigured Reason = "not_configured" // no credentials for the model
	ReasonSession       Reason = "session"        // the session's files are gone or can't be copied
)

// Reasons of crashed runs.
const (
	ReasonOOM    Reason = "oom"    // the kernel killed the agent for its memory
	ReasonSignal Reason = "signal" // the agent was ended by a signal
	ReasonExit   Reason = "exit"   // the agent exited without a result
	ReasonLost   Reason = "lost"   // the sandbox is gone (a reboot, or removed by others)
)

// Reasons of cancelled runs.
const (
	ReasonRequest    Reason = "request"    // a caller cancelled the run
	ReasonDisconnect Reason = "disconnect" // the caller went away and had asked for on_disconnect: cancel
)
