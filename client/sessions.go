package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Session is a conversation that outlives runs.
type Session struct {
	ID         string    `json:"id"`
	Title      string    `json:"title"`
	Alias      string    `json:"alias"`
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
	RunCount   int       `json:"run_count"`
	CostUSD    float64   `json:"cost_usd"`
	ActiveJob  string    `json:"active_job"` // the run that holds it
	ForkedFrom string    `json:"forked_from"`
}

// SessionPage is a part of a list, newest first.
type SessionPage struct {
	Sessions   []Session `json:"sessions"`
	NextCursor string    `json:"next_cursor"`
	HasMore    bool      `json:"has_more"`
}

// Sessions lists sessions; the filter's tenant is the caller's own.
func (c *Client) Sessions(ctx context.Context, f stromboli.SessionFilter) (SessionPage, error) {
	q := url.Values{}
	if f.Alias != "" {
		q.Set("alias", f.Alias)
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if f.Active != nil {
		q.Set("active", strconv.FormatBool(*f.Active))
	}
	if f.Limit != 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	if f.Cursor != "" {
		q.Set("cursor", f.Cursor)
	}
	var p SessionPage
	err := c.ask(ctx, call{method: http.MethodGet, path: "/sessions", query: q}, &p)
	return p, err
}

func sessionPath(name string) string { return "/sessions/" + url.PathEscape(name) }

// Session returns one session, by its id or alias.
func (c *Client) Session(ctx context.Context, name string) (Session, error) {
	var s Session
	err := c.ask(ctx, call{method: http.MethodGet, path: sessionPath(name)}, &s)
	return s, err
}

// DeleteSession removes a session with its transcript, files and runs.
// stromboli.SessionBusy while a run holds it.
func (c *Client) DeleteSession(ctx context.Context, name string) error {
	return c.ask(ctx, call{method: http.MethodDelete, path: sessionPath(name)}, nil)
}

// Messages is a part of a conversation, as it was at the end of its last run.
type Messages struct {
	Messages []stromboli.Message `json:"messages"`
	Total    int                 `json:"total"`
	HasMore  bool                `json:"has_more"`
}

// Messages returns the messages after the first offset ones; a limit of 0 means
// the server's, 50.
func (c *Client) Messages(ctx context.Context, name string, offset, limit int) (Messages, error) {
	q := url.Values{"offset": {strconv.Itoa(offset)}}
	if limit != 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var m Messages
	err := c.ask(ctx, call{method: http.MethodGet, path: sessionPath(name) + "/messages", query: q}, &m)
	return m, err
}

// Message returns one message, whole.
func (c *Client) Message(ctx context.Context, name, id string) (stromboli.Message, error) {
	var m struct {
		Message stromboli.Message `json:"message"`
	}
	err := c.ask(ctx, call{method: http.MethodGet, path: sessionPath(name) + "/messages/" + url.PathEscape(id)}, &m)
	return m.Message, err
}

// Transcript opens what the agent CLI has written, lines of JSON. The caller
// closes it; what is read without an error up to io.EOF is the whole.
func (c *Client) Transcript(ctx context.Context, name string) (io.ReadCloser, error) {
	resp, err := c.raw(ctx, call{method: http.MethodGet, path: sessionPath(name) + "/transcript"})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ImportSession makes a session of a transcript. Its name is an id or an alias;
// empty: the transcript's own id.
func (c *Client) ImportSession(ctx context.Context, name string, transcript io.Reader) (Session, error) {
	q := url.Values{}
	if name != "" {
		q.Set("session_id", name)
	}
	var s Session
	resp, err := c.raw(ctx, call{method: http.MethodPost, path: "/sessions/import", query: q, lines: transcript})
	if err != nil {
		return s, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&s); err != nil {
		return s, fmt.Errorf("POST /sessions/import: the answer is not what it should be: %w", err)
	}
	return s, nil
}

// raw sends a call once; answers that are no success are errors. The caller
// closes the body.
func (c *Client) raw(ctx context.Context, k call) (*http.Response, error) {
	req, err := c.request(ctx, k)
	if err != nil {
		return nil, err
	}
	resp, err := c.hc.Do(req)
	if err != nil {
		return nil, err // names method and URL
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", k.method, k.path, err)
	}
	return nil, errorOf(resp, body)
}
