package stromboli

// Lifecycle are hooks: each element is one complete shell command. They run one
// after the other, and the first that fails ends the run before its agent is
// started.
type Lifecycle struct {
	// OnCreateCommand is the session's: that of its first run, and run in each
	// new sandbox of the session's.
	OnCreateCommand []string `json:"on_create_command,omitempty"`
	// PostCreate is the session's too, and is run after that.
	PostCreate []string `json:"post_create,omitempty"`
	// PostStart is run in each run that names it, after those.
	PostStart []string `json:"post_start,omitempty"`
	// HooksTimeout bounds all hooks of a run together. Unset: 5 minutes.
	HooksTimeout Duration `json:"hooks_timeout,omitempty"`
}

// Create is the part that is the session's.
func (l Lifecycle) Create() Lifecycle {
	return Lifecycle{OnCreateCommand: l.OnCreateCommand, PostCreate: l.PostCreate}
}

// Creates reports whether there are hooks of the session's.
func (l Lifecycle) Creates() bool { return len(l.OnCreateCommand)+len(l.PostCreate) > 0 }

// The names of hooks.
const (
	HookOnCreate   = "on_create_command"
	HookPostCreate = "post_create"
	HookPostStart  = "post_start"
)

// The events of hooks.
const (
	EventHookStarted  EventType = "hook.started"
	EventHookOutput   EventType = "hook.output"
	EventHookFinished EventType = "hook.finished"
)

// HookStartedData is the data of a hook.started event.
type HookStartedData struct {
	Hook  string `json:"hook"`  // on_create_command, post_create or post_start
	Index int    `json:"index"` // of the command in its list
}

// HookOutputData is the data of a hook.output event: one line, without its
// newline. Bytes that are not UTF-8 are replaced by U+FFFD.
type HookOutputData struct {
	HookStartedData
	Stream string `json:"stream"` // stdout or stderr
	Text   string `json:"text"`
}

// HookFinishedData is the data of a hook.finished event.
type HookFinishedData struct {
	HookStartedData
	// ExitCode is the command's own, 128 + signal, or -1 where its shell could
	// not be started.
	ExitCode   int   `json:"exit_code"`
	DurationMS int64 `json:"duration_ms"`
	// Signal is the name of the signal that ended it, Cause why it was ended:
	// deadline, orphaned, disk, or a cancel's reason; not_started where its shell
	// could not be started, and Error says why.
	Signal string `json:"signal,omitempty"`
	Cause  string `json:"cause,omitempty"`
	OOM    bool   `json:"oom,omitempty"`
	Error  string `json:"error,omitempty"`
	// DroppedBytes are those of its output beyond 1 MiB, which are not kept.
	DroppedBytes int64 `json:"dropped_bytes,omitempty"`
}
