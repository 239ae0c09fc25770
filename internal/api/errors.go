package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Codes that only the edge knows.
const (
	codeHeaderTooLarge stromboli.Code = "header_too_large" // 431
	codeRequestTimeout stromboli.Code = "request_timeout"  // 408

	codeTooManyConnections stromboli.Code = "too_many_connections" // 503
)

// errorBody is the body of every refusal.
type errorBody struct {
	Error     string             `json:"error"`
	Status    string             `json:"status,omitempty"`
	ID        string             `json:"id,omitempty"`
	Code      stromboli.Code     `json:"code"`
	Details   []stromboli.Detail `json:"details,omitempty"`
	RequestID string             `json:"request_id"`
}

// statusOf is the one table from codes to HTTP statuses.
func statusOf(code stromboli.Code) int {
	switch code {
	case stromboli.Invalid, stromboli.NotSupported, stromboli.NotEnforced, stromboli.ImageMissing, stromboli.ImageForbidden:
		return http.StatusBadRequest
	case stromboli.Unauthenticated:
		return http.StatusUnauthorized
	case stromboli.Forbidden, stromboli.ScopeMissing, stromboli.AuthRequired:
		return http.StatusForbidden
	case stromboli.NotFound:
		return http.StatusNotFound
	case stromboli.MethodForbidden:
		return http.StatusMethodNotAllowed
	case codeRequestTimeout:
		return http.StatusRequestTimeout
	case stromboli.Conflict, stromboli.SessionBusy, stromboli.SessionExists, stromboli.KeyReused:
		return http.StatusConflict
	case stromboli.TooLarge:
		return http.StatusRequestEntityTooLarge
	case stromboli.NotJSON:
		return http.StatusUnsupportedMediaType
	case stromboli.UnknownHost:
		return http.StatusMisdirectedRequest
	case stromboli.QueueFull, stromboli.RateLimited:
		return http.StatusTooManyRequests
	case codeHeaderTooLarge:
		return http.StatusRequestHeaderFieldsTooLarge
	case stromboli.RegistryFailed:
		return http.StatusBadGateway
	case stromboli.NotConfigured, stromboli.EngineDown, stromboli.Draining, stromboli.StorageFull, stromboli.StorageBusy, stromboli.StorageDamaged, stromboli.AuditUnavailable, stromboli.ArchiveDown, codeTooManyConnections:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// fail answers with an error. Nothing else turns errors into answers.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return // the client is gone; nobody reads an answer
	}
	status, body := a.refusal(r, err)
	h := w.Header()
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		var after time.Duration
		if e, ok := errors.AsType[*stromboli.Error](err); ok {
			after = e.RetryAfter
		}
		setRetryAfter(h, after)
	}
	a.answer(w, r, status, body)
}

// refusal is an error as a caller is told of it. It logs those that are the
// server's fault.
func (a *API) refusal(r *http.Request, err error) (int, errorBody) {
	body := errorBody{Code: stromboli.CodeOf(err), RequestID: requestID(r)}
	e, coded := errors.AsType[*stromboli.Error](err)
	status := statusOf(body.Code)
	if status == http.StatusInternalServerError {
		// Whatever the text says, it was not written for callers.
		body.Error = "something went wrong in the server; its log tells more under this request id"
		body.Code = stromboli.Internal
	} else if coded {
		body.Error, body.Details = e.Message, e.Details
	}
	if body.Error == "" {
		body.Error = http.StatusText(status)
	}
	var waiting *waitError
	if errors.As(err, &waiting) {
		body.ID = waiting.runID
	}
	if hasStatus(r.URL.Path) {
		body.Status = "error"
	}
	if status >= http.StatusInternalServerError {
		a.log.ErrorContext(r.Context(), "request failed", "code", string(body.Code), "err", err)
	}
	return status, body
}

// setRetryAfter tells a client when to come back: whole seconds, at least one.
func setRetryAfter(h http.Header, after time.Duration) {
	seconds := int(math.Ceil(after.Seconds()))
	if seconds < 1 {
		seconds = 5
	}
	h.Set("Retry-After", strconv.Itoa(seconds))
}

// hasStatus reports whether the endpoint's success body carries a status, in
// which case its errors must carry one of the same type.
func hasStatus(path string) bool {
	return path == "/run" || strings.HasPrefix(path, "/run/") || path == "/jobs" || strings.HasPrefix(path, "/jobs/")
}

// waitError: the server stops while a caller waits for a run.
type waitError struct {
	runID string
	err   *stromboli.Error
}

func (e *waitError) Error() string { return "waiting for " + e.runID + ": " + e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

// answer writes a JSON body with a fresh deadline.
func (a *API) answer(w http.ResponseWriter, r *http.Request, status int, v any) {
	b, err := encode(v)
	if err != nil {
		a.log.ErrorContext(r.Context(), "encode an answer", "err", err)
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded","code":"internal"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	a.send(w, r, status, b)
}

// send writes a whole body, whose type is set, with a fresh deadline.
func (a *API) send(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	a.extendWrite(w)
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(body); err != nil { //nolint:gosec // no HTML but our own, and the type says so
		a.log.DebugContext(r.Context(), "write an answer", "err", err)
	}
}

// extendWrite gives the next write its own deadline. Writers without one (in
// tests) need none.
func (a *API) extendWrite(w http.ResponseWriter) {
	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(a.cfg.WriteTimeout))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		a.log.Debug("set a write deadline", "err", err)
	}
}

// encode is JSON on one line, with <, > and & as themselves: escaping them
// would make text up to six times as long.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
