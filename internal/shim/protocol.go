package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"
)

// The protocol versions that this build speaks. A newer server speaks to the
// shims of the release before; an older server refuses a newer shim by name.
const (
	MinVersion = 1
	MaxVersion = 2
)

// heartbeats is the version since which the server says every beat that it is
// there, and the shim takes a silent server for one that is gone.
const (
	heartbeats = 2
	beat       = 2 * time.Second
	silence    = 5 * beat
)

// Versions is a range of protocol versions.
type Versions struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// Hello is what a shim says of itself when it connects.
type Hello struct {
	Versions Versions `json:"versions"`
	Sandbox  string   `json:"sandbox"`
	Token    string   `json:"token,omitempty"` // empty once it was checked
	BootID   string   `json:"boot_id"`         // chosen anew by every shim process
	FirstSeq int64    `json:"first_seq"`       // of the oldest line kept
	LastSeq  int64    `json:"last_seq"`        // of the newest line; 0: none yet
	Agent    State    `json:"agent"`
}

// State is how far the agent has come.
type State struct {
	ProcessID string `json:"process_id,omitempty"` // Process.ID; empty: not started
	Exited    bool   `json:"exited,omitempty"`     // the Exit line is in the spool
	LastStdin uint64 `json:"last_stdin,omitempty"` // the newest frame written to stdin
	// Left is the time until the agent's deadline, by the shim's clock, while
	// it runs; 0: no deadline, or a shim that doesn't tell.
	Left time.Duration `json:"left,omitempty"`
}

type welcome struct {
	Version int `json:"version"`
}

// Process is the agent to be started.
type Process struct {
	// ID names this start; starting the same ID again changes nothing.
	ID   string   `json:"id"`
	Argv []string `json:"argv"` // Argv[0] is an absolute path
	Env  []string `json:"env"`
	// Secrets are further variables, by name, whose values the shim reads from
	// files of SecretsDir.
	Secrets map[string]string `json:"secrets,omitempty"`

	Dir string `json:"dir"`
	UID int    `json:"uid"` // not 0
	GID int    `json:"gid"`
	// Deadline ends the agent with CauseDeadline, counted from now by the
	// shim's monotonic clock. 0: none.
	Deadline time.Duration `json:"deadline,omitempty"`
}

// StopRequest says how to end the agent. Both times count from now.
type StopRequest struct {
	TermAfter time.Duration `json:"term_after"` // SIGTERM to the agent and its process group
	KillAfter time.Duration `json:"kill_after"` // SIGKILL to every process of the agent's uid
	Cause     string        `json:"cause"`      // comes back in the ExitStatus; the first cause stays
}

// MountStat is what a mount target is inside the sandbox.
type MountStat struct {
	Target string `json:"target"`
	Dev    uint64 `json:"dev,omitempty"`
	Ino    uint64 `json:"ino,omitempty"`
	Err    string `json:"err,omitempty"` // why it can't be told; empty: it can
}

type op string

const (
	opStart      op = "start"
	opCloseStdin op = "close_stdin"
	opStop       op = "stop"
	opExit       op = "exit"
	opWriteFile  op = "write_file"
	opReadFile   op = "read_file"
	opMounts     op = "mounts"
	opAttest     op = "attest"

	// Of the shims that a server has made itself, or a server of at least its own
	// release: older ones don't know them, and need not.
	opMakeDir op = "make_dir"
	opHook    op = "hook"
)

// request is a call of the server's. Calls that need no stream of their own
// are sent again after a reconnect, so every one of them is idempotent.
type request struct {
	ID    uint64       `json:"id"`
	Op    op           `json:"op"`
	Start *Process     `json:"start,omitempty"`
	Stop  *StopRequest `json:"stop,omitempty"`
	Hook  *Hook        `json:"hook,omitempty"`
	File  *fileRequest `json:"file,omitempty"`
}

// fileRequest is what a helper does; it is the helper's input too.
type fileRequest struct {
	Path    string   `json:"path,omitempty"`
	Targets []string `json:"targets,omitempty"`
	UID     int      `json:"uid"`
	GID     int      `json:"gid"`
	Mode    uint32   `json:"mode,omitempty"`
	Limit   int64    `json:"limit,omitempty"`
}

type response struct {
	ID     uint64          `json:"id"`
	Error  *RemoteError    `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Errors of a Peer.
var (
	// ErrGone says that the sandbox and with it the shim are gone for good.
	ErrGone = errors.New("sandbox is gone")
	// ErrClosed says that the Peer was closed, or that its Run has returned.
	ErrClosed = errors.New("peer is closed")
	// ErrInterrupted says that the connection was cut in the middle of a file.
	ErrInterrupted = errors.New("connection to the shim was cut")
)

// Codes of a RemoteError.
const (
	CodeInvalid     = "invalid"      // the request makes no sense
	CodeConflict    = "conflict"     // another process was started, or a stop came first
	CodeNotStarted  = "not_started"  // there is no agent yet
	CodeStart       = "start"        // the agent can't be started
	CodeSecret      = "secret"       // a secret can't be read, or no variable can hold it
	CodeStdinClosed = "stdin_closed" // the agent reads no more
	CodeNotExist    = "not_exist"
	CodePermission  = "permission"
	CodeNotRegular  = "not_regular" // the path is no regular file
	CodeTooLarge    = "too_large"   // the file is larger than the limit
	CodeNoSpace     = "no_space"
	CodeBusy        = "busy"        // too much at once
	CodeInterrupted = "interrupted" // the helper was killed
	CodeVersion     = "version"     // no common protocol version
	CodeRefused     = "refused"     // the hello was not accepted
	CodeFailed      = "failed"      // anything else
)

// RemoteError is the shim's answer to a request that it could not carry out.
type RemoteError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (e *RemoteError) Error() string { return "shim: " + e.Message }

// Is maps the code to the standard errors that mean the same: fs.ErrNotExist,
// fs.ErrPermission and syscall.ENOSPC.
func (e *RemoteError) Is(target error) bool {
	switch e.Code {
	case CodeNotExist:
		return target == fs.ErrNotExist
	case CodePermission:
		return target == fs.ErrPermission
	case CodeNoSpace:
		return target == syscall.ENOSPC
	}
	return false
}

func remotef(code, format string, args ...any) *RemoteError {
	return &RemoteError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// remoteOf turns an error of the operating system into an answer.
func remoteOf(err error) *RemoteError {
	if re, ok := errors.AsType[*RemoteError](err); ok {
		return re
	}
	code := CodeFailed
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = CodeNotExist
	case errors.Is(err, fs.ErrPermission):
		code = CodePermission
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = CodeNoSpace
	}
	return &RemoteError{Code: code, Message: err.Error()}
}

// checkIDs refuses ids that the kernel would take for "unchanged" or that mean
// root.
func checkIDs(uid, gid int) *RemoteError {
	if uid <= 0 || int64(uid) >= 1<<32-1 || gid < 0 || int64(gid) >= 1<<32-1 {
		return remotef(CodeInvalid, "uid %d, gid %d: not a user that may own an agent", uid, gid)
	}
	return nil
}
