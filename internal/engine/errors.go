package engine

import (
	"errors"
	"fmt"
)

// The kinds of errors, for errors.Is.
var (
	// ErrNotFound: no such container, image or path.
	ErrNotFound = errors.New("not found")
	// ErrImageMissing: no such image. It is an ErrNotFound too.
	ErrImageMissing = fmt.Errorf("image %w", ErrNotFound)
	// ErrSecretMissing: no such secret. It is an ErrNotFound too.
	ErrSecretMissing = fmt.Errorf("secret %w", ErrNotFound)
	// ErrConflict: the name is taken, or the state doesn't allow the call.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable: the engine doesn't answer. Trying again may help.
	ErrUnavailable = errors.New("container engine unavailable")
	// ErrInvalid: the engine refused the request as malformed.
	ErrInvalid = errors.New("refused by the container engine")
	// ErrTooLarge: a file is longer than the limit that the caller gave.
	ErrTooLarge = errors.New("too large")
	// ErrRegistry: a registry didn't answer, or with a fault.
	ErrRegistry = errors.New("registry failed")
	// ErrInterrupted: a registry's connection broke in the middle. It is an
	// ErrRegistry too, and trying again at once may help.
	ErrInterrupted = fmt.Errorf("%w: the connection broke", ErrRegistry)
	// ErrDenied: a registry doesn't give the image to this login, or to nobody
	// without one.
	ErrDenied = errors.New("denied by the registry")
	// ErrStorageFull: the engine's disk is full.
	ErrStorageFull = errors.New("container storage is full")
)

// Error is an engine's refusal, with its own words.
type Error struct {
	Op      string // what was asked, such as "create container x"
	Status  int    // the HTTP status, where there was an answer
	Message string // the engine's message, never empty
	Kind    error  // one of the Err values, or nil
	Cause   error  // what the transport said, where there was no answer
}

// Error implements error.
func (e *Error) Error() string { return e.Op + ": " + e.Message }

// Unwrap gives the kind and the cause, so that errors.Is finds both.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Cause != nil {
		errs = append(errs, e.Cause)
	}
	return errs
}
