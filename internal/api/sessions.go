package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	messagesDefault = 50
	messagesMax     = 200
)

// Sessions is what the API needs of the keeper of sessions. All methods see only
// the principal's tenant: another tenant's session is stromboli.NotFound. A name
// is a session's id or alias; what can be neither is stromboli.Invalid.
type Sessions interface {
	Session(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, error)
	// ListSessions returns the sessions that the filter, whose tenant is not set,
	// selects, newest first, and the next page's cursor, empty at the end.
	ListSessions(ctx context.Context, p stromboli.Principal, f stromboli.SessionFilter) (list []stromboli.Session, next string, err error)
	// DeleteSession removes a session and all that belongs to it; it is gone on
	// return. stromboli.SessionBusy while a run holds it.
	DeleteSession(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, error)
	// Messages returns a page of the conversation, empty while nothing is saved.
	Messages(ctx context.Context, p stromboli.Principal, name string, offset, limit int) (stromboli.MessagePage, error)
	Message(ctx context.Context, p stromboli.Principal, name, id string) (stromboli.Message, error)
	// Transcript opens what the CLI has written; stromboli.NotFound while nothing
	// is saved. The caller closes it.
	Transcript(ctx context.Context, p stromboli.Principal, name string) (stromboli.Session, io.ReadCloser, error)
	// ImportSession makes a session of a transcript, durable on return. An error
	// of the reader comes back as it is.
	ImportSession(ctx context.Context, p stromboli.Principal, name string, transcript io.Reader) (stromboli.Session, error)
}

// sessionBody describes a session.
type sessionBody struct {
	ID         string    `json:"id"`
	Title      string    `json:"title"`
	Alias      string    `json:"alias,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
	RunCount   int       `json:"run_count"`
	CostUSD    float64   `json:"cost_usd"`
	ActiveJob  string    `json:"active_job,omitempty"` // the run that holds it
	ForkedFrom string    `json:"forked_from,omitempty"`
	// KeptUntil is when the sandbox that waits, stopped, for the next run is
	// discarded.
	KeptUntil *time.Time `json:"sandbox_kept_until,omitempty"`
}

func sessionOf(s stromboli.Session) sessionBody {
	b := sessionBody{
		ID: s.ID, Title: s.Title, Alias: s.Alias, CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC(),
		RunCount: s.RunCount, CostUSD: s.CostUSD, ForkedFrom: s.ForkedFrom,
	}
	if s.ActiveRun != "" {
		b.ActiveJob = stromboli.JobID(s.ActiveRun)
	} else if s.Kept.ID != "" {
		b.KeptUntil = &s.Kept.Until
	}
	return b
}

// sessionList is generic because clients from before 0.5 decode plain ids.
type sessionList[T any] struct {
	Sessions   []T    `json:"sessions"`
	NextCursor string `json:"next_cursor,omitempty"`
	HasMore    bool   `json:"has_more"`
}

// sessionDeleted is the answer of DELETE /sessions/{id}.
type sessionDeleted struct {
	Success   bool   `json:"success"`
	SessionID string `json:"session_id"`
}

// messageList is a page of a conversation, oldest first.
type messageList struct {
	Messages []stromboli.Message `json:"messages"`
	Total    int                 `json:"total"` // of the whole conversation
	Offset   int64               `json:"offset"`
	Limit    int64               `json:"limit"`
	HasMore  bool                `json:"has_more"`
}

type messageAnswer struct {
	Message stromboli.Message `json:"message"`
}

func (a *API) listSessions(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	limit, err := intParam(q, "limit", 1, maxPage, maxPage)
	if err != nil {
		return err
	}
	f := stromboli.SessionFilter{Alias: q.Get("alias"), Cursor: q.Get("cursor"), Limit: int(limit)}
	if f.Since, err = timeParam(q, "since"); err != nil {
		return err
	}
	switch v := q.Get("active"); v {
	case "":
	case "true", "false":
		active := v == "true"
		f.Active = &active
	default:
		return stromboli.FieldError("active", "must be true or false")
	}
	list, next, err := a.cfg.Sessions.ListSessions(r.Context(), p, f)
	if err != nil {
		return err
	}
	if wantsPlainIDs(r.UserAgent()) {
		ids := sessionList[string]{Sessions: make([]string, 0, len(list)), NextCursor: next, HasMore: next != ""}
		for _, s := range list {
			ids.Sessions = append(ids.Sessions, s.ID)
		}
		a.answer(w, r, http.StatusOK, ids)
		return nil
	}
	body := sessionList[sessionBody]{Sessions: make([]sessionBody, 0, len(list)), NextCursor: next, HasMore: next != ""}
	for _, s := range list {
		body.Sessions = append(body.Sessions, sessionOf(s))
	}
	a.answer(w, r, http.StatusOK, body)
	return nil
}

// wantsPlainIDs knows the published Go client, which decodes a list of strings.
func wantsPlainIDs(agent string) bool {
	for _, version := range []string{"0.1.", "0.2.", "0.3."} {
		if strings.HasPrefix(agent, "stromboli-go/"+version) {
			return true
		}
	}
	return false
}

func (a *API) getSession(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	s, err := a.cfg.Sessions.Session(r.Context(), p, r.PathValue("id"))
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, sessionOf(s))
	return nil
}

func (a *API) deleteSession(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	ctx, cancel := detach(r)
	defer cancel()
	s, err := a.cfg.Sessions.DeleteSession(ctx, p, r.PathValue("id"))
	if err != nil {
		return err
	}
	actedOn(r, s.ID)
	a.answer(w, r, http.StatusOK, sessionDeleted{true, s.ID})
	return nil
}

func (a *API) listMessages(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	offset, err := intParam(q, "offset", 0, 1<<31-1, 0)
	if err != nil {
		return err
	}
	limit, err := intParam(q, "limit", 1, messagesMax, messagesDefault)
	if err != nil {
		return err
	}
	page, err := a.cfg.Sessions.Messages(r.Context(), p, r.PathValue("id"), int(offset), int(limit))
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, messageList{page.Messages, page.Total, offset, limit, int(offset)+len(page.Messages) < page.Total})
	return nil
}

func (a *API) getMessage(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	m, err := a.cfg.Sessions.Message(r.Context(), p, r.PathValue("id"), r.PathValue("message_id"))
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, messageAnswer{m})
	return nil
}

// getTranscript sends the file as it is. A reading error cuts the connection, so
// that a part is not taken for the whole.
func (a *API) getTranscript(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	s, src, err := a.cfg.Sessions.Transcript(r.Context(), p, r.PathValue("id"))
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	h := w.Header()
	actedOn(r, s.ID)
	h.Set("Content-Type", "application/jsonl")
	h.Set("Content-Disposition", `attachment; filename="`+s.ID+`.jsonl"`)
	h.Set("Cache-Control", "no-store")
	a.extendWrite(w)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	for buf := make([]byte, 64<<10); ; {
		n, err := src.Read(buf)
		if n > 0 {
			a.extendWrite(w)
			if _, err := w.Write(buf[:n]); err != nil {
				return nil // the client is gone
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			a.log.ErrorContext(r.Context(), "read a transcript", "session", s.ID, "err", err)
			panic(http.ErrAbortHandler)
		}
	}
}

func (a *API) importSession(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	if err := onlyParams(q, "session_id"); err != nil {
		return err
	}
	s, err := a.cfg.Sessions.ImportSession(r.Context(), p, q.Get("session_id"), &longBody{a: a, w: w, r: r, until: time.Now().Add(longBodyTime)})
	if err != nil {
		return err
	}
	a.bodyRead(w)
	actedOn(r, s.ID)
	a.answer(w, r, http.StatusCreated, sessionOf(s))
	return nil
}
