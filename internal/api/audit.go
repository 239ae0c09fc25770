package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// Audit is what the API needs of the audit log's keeper. Where a record can't be
// written the error is stromboli.StorageFull or AuditUnavailable.
type Audit interface {
	// Begin records an intent, durable on return, and makes sure that there is
	// room for its outcome: each is followed by one End.
	Begin(ctx context.Context, r stromboli.AuditRecord) (seq uint64, err error)
	// End records what became of an intent, durable on return.
	End(ctx context.Context, intent uint64, r stromboli.AuditRecord) error
	// Append records what has no intent, durable on return.
	Append(ctx context.Context, r stromboli.AuditRecord) (seq uint64, err error)
	// Note does so for what strangers can cause: of a flood only a part.
	Note(ctx context.Context, r stromboli.AuditRecord) error
	// Records returns a page; it looks at a bounded part of the log.
	Records(ctx context.Context, f stromboli.AuditFilter) (stromboli.AuditPage, error)
}

// What the audit log calls what has no route of its own.
const (
	auditFailedLogin = "auth.failed" // credentials that don't hold
	auditDenied      = "auth.denied" // a scope that the credentials don't have
)

// auditTime bounds the writing of a record.
const auditTime = 30 * time.Second

// trail is what one request leaves in the audit log: an intent before anything is
// done, and the outcome before the answer's first byte. It is used by one
// goroutine at a time.
type trail struct {
	log    Audit
	record stromboli.AuditRecord
	intent uint64
	// stranger: anybody may come here, so there is no intent, and of refusals only a
	// part is recorded.
	stranger bool
	settled  bool
	err      error // of recording the outcome
}

type trailKey struct{}

// trailOf is a request's; nil where it leaves none.
func trailOf(r *http.Request) *trail {
	t, _ := r.Context().Value(trailKey{}).(*trail)
	return t
}

// actedOn names what a request has acted on, where its path doesn't.
func actedOn(r *http.Request, object string) {
	if t := trailOf(r); t != nil {
		t.record.Object = object
	}
}

// settle records that what was asked for is done, where the answer comes later. Its
// error is the request's.
func settle(r *http.Request, object string) error {
	t := trailOf(r)
	if t == nil {
		return nil
	}
	t.record.Object = object
	return t.settle(r.Context(), stromboli.AuditOK, "")
}

// settle records the outcome, once.
func (t *trail) settle(ctx context.Context, outcome string, code stromboli.Code) error {
	if t.settled {
		return t.err
	}
	t.settled = true
	t.record.Outcome, t.record.Code = outcome, code
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTime)
	defer cancel()
	switch {
	case !t.stranger:
		t.err = t.log.End(ctx, t.intent, t.record)
	case outcome == stromboli.AuditOK:
		_, t.err = t.log.Append(ctx, t.record)
	default:
		t.err = t.log.Note(ctx, t.record)
	}
	if t.err != nil {
		// Not an error of those that may pass: where it is done, asking again would
		// do it twice.
		t.err = stromboli.Errorf(stromboli.Internal, "the outcome (%s) of what was asked for could not be recorded", outcome).WithCause(t.err)
	}
	return t.err
}

// audited serves a request of a route, between the two records of it where it has
// any.
func (a *API) audited(rt route, w http.ResponseWriter, r *http.Request, id auth.Identity) error {
	if a.cfg.Audit == nil || rt.audit == "" || resumes(rt, r) {
		return rt.serve(w, r, id.Principal)
	}
	t := &trail{log: a.cfg.Audit, record: a.recordOf(rt, r, id), stranger: rt.open}
	if !t.stranger {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), auditTime)
		defer cancel()
		var err error
		if t.intent, err = a.cfg.Audit.Begin(ctx, t.record); err != nil {
			return err
		}
	}
	// Also when the handler panics, or leaves without an answer since the client has.
	defer func() { //nolint:contextcheck // the request's own
		_ = t.settle(r.Context(), stromboli.AuditFailed, stromboli.Internal)
		if err := t.err; err != nil {
			a.log.ErrorContext(r.Context(), "the audit log lacks an outcome", "request_id", requestID(r), "intent", t.intent, "err", err)
		}
	}()
	aw := &auditWriter{ResponseWriter: w, api: a, trail: t, request: r}
	err := rt.serve(aw, r.WithContext(context.WithValue(r.Context(), trailKey{}, t)), id.Principal)
	if err != nil && !t.settled {
		_ = t.settle(r.Context(), outcomeOf(err), stromboli.CodeOf(err)) // nothing was done: the refusal stands
	}
	return err
}

// resumes reports whether a request for a stream only takes one up again.
func resumes(rt route, r *http.Request) bool {
	if rt.pattern != "GET /run/stream" && rt.pattern != "POST /run/stream" {
		return false
	}
	q, err := query(r)
	if err != nil {
		return false
	}
	_, again, err := resumed(r, q)
	return again && err == nil
}

func (a *API) recordOf(rt route, r *http.Request, id auth.Identity) stromboli.AuditRecord {
	rec := stromboli.AuditRecord{
		Action: rt.audit, Tenant: id.Tenant, Principal: id.Account, From: a.from(r), RequestID: requestID(r), Object: r.PathValue("name"),
	}
	if id.Name != id.Account {
		rec.Client = id.Name
	}
	if name := r.PathValue("id"); name != "" {
		rec.Object = name
		if run, ok := stromboli.ParseRunID(name); ok {
			rec.Object = run
		}
	}
	return rec
}

// from is the address that a request comes from, behind trusted proxies the one
// that they name.
func (a *API) from(r *http.Request) string {
	if addr, ok := clientAddr(r, *a.proxies.Load()); ok {
		return addr.String()
	}
	return "unix"
}

// denied records that a request was refused before its handler, where that is for
// what it lacks, and returns the error.
func (a *API) denied(rt route, r *http.Request, id auth.Identity, err error) error {
	code := stromboli.CodeOf(err)
	action := ""
	switch {
	case a.cfg.Audit == nil:
	case errors.Is(err, auth.ErrWrong), code == stromboli.Unauthenticated && (rt.acts || hasCredential(r)):
		action = auditFailedLogin
	case code == stromboli.ScopeMissing, code == stromboli.Forbidden && rt.acts:
		action = auditDenied
	}
	if action == "" {
		return err
	}
	rec := a.recordOf(rt, r, id)
	rec.Action, rec.Outcome, rec.Code = action, stromboli.AuditRefused, code
	rec.Detail = map[string]string{"route": rt.pattern}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), auditTime)
	defer cancel()
	if missed := a.cfg.Audit.Note(ctx, rec); missed != nil { // nothing was done: the refusal stands
		a.log.ErrorContext(ctx, "the audit log lacks a refusal", "request_id", requestID(r), "action", action, "err", missed)
	}
	return err
}

func hasCredential(r *http.Request) bool {
	c, err := credential(r)
	return c != "" || err != nil
}

// outcomeOf is whose fault an error is.
func outcomeOf(err error) string {
	if statusOf(stromboli.CodeOf(err)) >= http.StatusInternalServerError {
		return stromboli.AuditFailed
	}
	return stromboli.AuditRefused
}

// auditWriter holds an answer back until the outcome is recorded. Where it can't
// be, the answer is that.
type auditWriter struct {
	http.ResponseWriter
	api     *API
	trail   *trail
	request *http.Request
	begun   bool
	refused bool
}

func (w *auditWriter) WriteHeader(status int) {
	if w.refused {
		return
	}
	if !w.begun && status >= http.StatusOK {
		w.begun = true
		outcome := stromboli.AuditOK
		switch {
		case status >= http.StatusInternalServerError:
			outcome = stromboli.AuditFailed
		case status >= http.StatusBadRequest:
			outcome = stromboli.AuditRefused
		}
		if err := w.trail.settle(w.request.Context(), outcome, ""); err != nil {
			w.refused = true
			w.api.fail(w.ResponseWriter, w.request, err)
			return
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *auditWriter) Write(b []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	if w.refused {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// FlushError would send a header that nobody has written.
func (w *auditWriter) FlushError() error {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *auditWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// auditList is a page of the audit log, oldest first. HasMore may be true of a
// page without records: an answer looks at a bounded part of the log.
type auditList struct {
	Records   []stromboli.AuditRecord `json:"records"`
	NextAfter uint64                  `json:"next_after"`
	HasMore   bool                    `json:"has_more"`
}

// listAudit answers a page of the records of the caller's tenant; the default
// tenant's also holds those of the server itself.
func (a *API) listAudit(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	if a.cfg.Audit == nil {
		return stromboli.Errorf(stromboli.NotConfigured, "there is no audit log here: the server has STROMBOLI_AUDIT_ENABLED=false")
	}
	q, err := query(r)
	if err != nil {
		return err
	}
	f, err := auditFilterOf(q)
	if err != nil {
		return err
	}
	f.Tenant, f.Server = p.Tenant, p.Tenant == stromboli.DefaultTenant
	page, err := a.cfg.Audit.Records(r.Context(), f)
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, auditList{append([]stromboli.AuditRecord{}, page.Records...), page.Next, page.More})
	return nil
}

func auditFilterOf(q url.Values) (stromboli.AuditFilter, error) {
	f := stromboli.AuditFilter{Principal: q.Get("principal"), Action: q.Get("action"), Object: q.Get("object")}
	if err := onlyParams(q, "after", "limit", "since", "until", "principal", "action", "object"); err != nil {
		return f, err
	}
	after, limit, err := pageOf(q)
	if err != nil {
		return f, err
	}
	f.After, f.Limit = uint64(after), limit //nolint:gosec // not negative
	if f.Since, err = timeParam(q, "since"); err != nil {
		return f, err
	}
	if f.Until, err = timeParam(q, "until"); err != nil {
		return f, err
	}
	if run, ok := stromboli.ParseRunID(f.Object); ok {
		f.Object = run
	}
	return f, nil
}
