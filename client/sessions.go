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
	q := params{url.Values{}}
	q.set("alias", f.Alias)
	q.since(f.Since)
	if f.Active != nil {
		q.Set("active", strconv.FormatBool(*f.Active))
	}
	q.page(f.Limit, f.Cursor)
	var p SessionPage
	err := c.ask(ctx, call{method: http.MethodGet, path: "/sessions", query: q.Values}, &p)
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
	return c.open(ctx, call{method: http.MethodGet, path: sessionPath(name) + "/transcript"})
}

// ImportSession makes a session of a transcript. Its name is an id or an alias;
// empty: the transcript's own id.
func (c *Client) ImportSession(ctx context.Context, name string, transcript io.Reader) (Session, error) {
	q := params{url.Values{}}
	q.set("session_id", name)
	var s Session
	body, err := c.open(ctx, call{method: http.MethodPost, path: "/sessions/import", query: q.Values, lines: transcript})
	if err != nil {
		return s, err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&s); err != nil {
		return s, fmt.Errorf("POST /sessions/import: the answer is not what it should be: %w", err)
	}
	return s, nil
}
