package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Job is a run as the server shows it.
type Job struct {
	ID               string               `json:"id"`
	Status           stromboli.Status     `json:"status"`
	Output           string               `json:"output"`
	Error            string               `json:"error"`
	SessionID        string               `json:"session_id"`
	SessionAlias     string               `json:"session_alias"` // the caller's name of it, or empty
	StructuredOutput json.RawMessage      `json:"structured_output"`
	CrashInfo        *stromboli.CrashInfo `json:"crash_info"`
	Usage            *stromboli.Usage     `json:"usage"`
	Kind             stromboli.Kind       `json:"kind"`
	Phase            stromboli.Phase      `json:"phase"`
	Reason           stromboli.Reason     `json:"reason"`
	Warnings         []stromboli.Warning  `json:"warnings"`
	ImageDigest      string               `json:"image_digest"`
	Metadata         map[string]string    `json:"metadata"`
	Network          stromboli.Network    `json:"network"`
	CreatedAt        time.Time            `json:"created_at"` // not in answers of Run
	UpdatedAt        time.Time            `json:"updated_at"` // not in answers of Run
	StartedAt        time.Time            `json:"started_at"`
	FinishedAt       time.Time            `json:"finished_at"`
}

// Err is nil for a run that is active or completed, and otherwise an error
// whose code is the run's reason.
func (j Job) Err() error {
	if j.Status == stromboli.Completed || !j.Status.Terminal() {
		return nil
	}
	code := stromboli.Code(j.Reason)
	if code == "" {
		code = stromboli.Internal
	}
	message := j.Error
	if message == "" {
		message = "the run " + string(j.Status)
	}
	return &stromboli.Error{Code: code, Message: message}
}

// Run starts a run and waits for its end, also across a restart of the server.
// The error is about the asking; how the run ended is in the Job.
func (c *Client) Run(ctx context.Context, spec stromboli.RunSpec, opts ...Option) (Job, error) {
	k, err := submission("/run", spec, opts)
	if err != nil {
		return Job{}, err
	}
	retry := backoff{patience: c.patience}
	for {
		job, err := c.runOnce(ctx, k)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return job, err
		}
		if err := retry.wait(ctx, err, pauseOf(err)); err != nil {
			return Job{}, err
		}
	}
}

func (c *Client) runOnce(ctx context.Context, k call) (Job, error) {
	resp, body, err := c.roundTrip(ctx, k)
	if err != nil {
		return Job{}, err
	}
	var job Job
	bad := json.Unmarshal(body, &job)
	if resp.StatusCode == http.StatusOK && bad == nil {
		return job, nil
	}
	// A run that ended badly answers with its id and a reason for a code; a
	// server that stops while the run goes on names the run, but no reason.
	if refused := errorOf(resp, body); bad != nil || job.ID == "" || refused.Code == stromboli.Draining {
		return Job{}, refused
	}
	job.Status = stromboli.Failed
	if resp.StatusCode == http.StatusConflict {
		job.Status = stromboli.Cancelled
	}
	return job, nil
}

// Submitted names a run that was started.
type Submitted struct {
	JobID        string `json:"job_id"`
	SessionID    string `json:"session_id"`
	SessionAlias string `json:"session_alias"` // the caller's name of the session, or empty
}

// RunAsync starts a run and returns at once.
func (c *Client) RunAsync(ctx context.Context, spec stromboli.RunSpec, opts ...Option) (Submitted, error) {
	var s Submitted
	k, err := submission("/run/async", spec, opts)
	if err != nil {
		return s, err
	}
	retry := backoff{patience: c.patience}
	for {
		err := c.ask(ctx, k, &s)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return s, err
		}
		if err := retry.wait(ctx, err, pauseOf(err)); err != nil {
			return s, err
		}
	}
}

// Job returns one run; both of its names are understood.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	var j Job
	err := c.ask(ctx, call{method: http.MethodGet, path: "/jobs/" + url.PathEscape(id)}, &j)
	return j, err
}

// Filter selects runs; zero fields select everything, but Kind "" is async.
type Filter struct {
	Kind      string // async, sync, stream or all
	Status    stromboli.Status
	SessionID string
	Since     time.Time
	Metadata  map[string]string
	Limit     int
	Cursor    string
}

// Page is a part of a list, newest first.
type Page struct {
	Jobs       []Job  `json:"jobs"`
	NextCursor string `json:"next_cursor"`
	HasMore    bool   `json:"has_more"`
}

// Jobs lists runs.
func (c *Client) Jobs(ctx context.Context, f Filter) (Page, error) {
	q := params{url.Values{}}
	q.set("kind", f.Kind)
	q.set("status", string(f.Status))
	q.set("session_id", f.SessionID)
	q.since(f.Since)
	q.page(f.Limit, f.Cursor)
	for k, v := range f.Metadata {
		q.Set("metadata."+k, v)
	}
	var p Page
	err := c.ask(ctx, call{method: http.MethodGet, path: "/jobs", query: q.Values}, &p)
	return p, err
}

// Cancel asks for a run's end; the wish is durable when it returns.
func (c *Client) Cancel(ctx context.Context, id string) error {
	return c.ask(ctx, call{method: http.MethodDelete, path: "/jobs/" + url.PathEscape(id)}, nil)
}

// EventData fetches an event's whole data, as its CutData refers to.
func (c *Client) EventData(ctx context.Context, id string, seq int64) (json.RawMessage, error) {
	var data json.RawMessage
	path := fmt.Sprintf("/jobs/%s/events/%d/data", url.PathEscape(id), seq)
	err := c.ask(ctx, call{method: http.MethodGet, path: path}, &data)
	return data, err
}

// Health is the server's account of itself.
type Health struct {
	Status     string `json:"status"` // ok or degraded
	Version    string `json:"version"`
	Components []struct {
		Name   string `json:"name"`
		Status string `json:"status"`
		Error  string `json:"error"`
	} `json:"components"`
}

// Health asks how the server is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	var h Health
	err := c.ask(ctx, call{method: http.MethodGet, path: "/health"}, &h)
	return h, err
}

// Ready returns nil when the server takes runs.
func (c *Client) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, body, err := c.roundTrip(ctx, call{method: http.MethodGet, path: "/readyz"})
	if err != nil || resp.StatusCode == http.StatusOK {
		return err
	}
	var b struct {
		Reasons []string `json:"reasons"`
	}
	if json.Unmarshal(body, &b) != nil || len(b.Reasons) == 0 {
		return errorOf(resp, body)
	}
	return stromboli.Errorf(stromboli.Draining, "the server is not ready: %s", b.Reasons[0])
}

// Version describes the server's build.
type Version struct {
	Version      string   `json:"version"`
	Commit       string   `json:"commit"`
	Capabilities []string `json:"capabilities"`
	Unsupported  []string `json:"unsupported"` // ways to the model that the server doesn't have
	ClaudeCLI    string   `json:"claude_cli"`
	Engine       string   `json:"engine"`
}

// Version asks for the server's build.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.ask(ctx, call{method: http.MethodGet, path: "/version"}, &v)
	return v, err
}
