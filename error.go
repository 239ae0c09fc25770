package stromboli

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is the kind of an error, for machines. It is itself an error, so that
// errors.Is(err, stromboli.NotFound) works on both sides of the wire.
type Code string

// The codes. Codes of runs that ended badly are the run's Reason.
const (
	Invalid         Code = "invalid_request"       // 400
	NotSupported    Code = "not_supported"         // 400
	Unauthenticated Code = "unauthenticated"       // 401
	Forbidden       Code = "forbidden"             // 403
	ScopeMissing    Code = "insufficient_scope"    // 403
	AuthRequired    Code = "auth_required"         // 403
	NotFound        Code = "not_found"             // 404
	Conflict        Code = "conflict"              // 409
	SessionBusy     Code = "session_busy"          // 409
	SessionExists   Code = "session_exists"        // 409
	KeyReused       Code = "idempotency_key_reuse" // 409
	TooLarge        Code = "body_too_large"        // 413
	NotJSON         Code = "unsupported_media"     // 415
	UnknownHost     Code = "unknown_host"          // 421
	QueueFull       Code = "queue_full"            // 429
	RateLimited     Code = "rate_limited"          // 429
	Internal        Code = "internal"              // 500
	NotConfigured   Code = "not_configured"        // 503
	EngineDown      Code = "engine_down"           // 503
	Draining        Code = "draining"              // 503
	StorageFull     Code = "storage_full"          // 503
	StorageBusy     Code = "storage_busy"          // 503
	StorageDamaged  Code = "storage_damaged"       // 503
	// AuditUnavailable: what was asked for could not be recorded, and was not done.
	AuditUnavailable Code = "audit_unavailable"  // 503
	ArchiveDown      Code = "archive_down"       // 503
	NotEnforced      Code = "not_enforced"       // 400
	ImageMissing     Code = "image_missing"      // 400
	ImageForbidden   Code = "image_not_allowed"  // 400
	RegistryFailed   Code = "registry_failed"    // 502
	MethodForbidden  Code = "method_not_allowed" // 405
	SessionUnusable  Code = "session"            // only of runs: ReasonSession
)

// Error implements error.
func (c Code) Error() string { return string(c) }

// Detail is one field's fault.
type Detail struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// Error is the one error type that crosses package and process borders. Code
// is for machines, Message for the caller, and the cause, which never leaves
// the server, for the log.
type Error struct {
	Code       Code
	Message    string
	Details    []Detail
	RetryAfter time.Duration // when trying again may help; zero: not said
	cause      error
}

// Errorf makes an error with a message for the caller. A %w argument becomes
// the cause and its text part of the message.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// FieldError makes an Invalid error about one field of a request.
func FieldError(field, format string, args ...any) *Error {
	msg := fmt.Sprintf(format, args...)
	return &Error{Code: Invalid, Message: field + ": " + msg, Details: []Detail{{Field: field, Message: msg}}}
}

// WithCause returns e with the error that the log shows and the caller doesn't.
func (e *Error) WithCause(err error) *Error {
	e.cause = err
	return e
}

// Error implements error; it includes the cause and is for logs.
func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.cause != nil && !strings.Contains(e.Message, e.cause.Error()) {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is this error's code.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// CodeOf returns the code of the first Error in err's chain, else Internal.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}
