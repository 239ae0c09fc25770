// Package client speaks to a Stromboli server: it starts runs, follows them
// across cut connections and restarts of the server, and cancels them.
//
// It rebuilds the server's errors, so that errors.Is(err, stromboli.NotFound)
// works here as it does there. A run that fails is an answer, not an error:
// see Job.Err. Nothing is started twice: what makes a run is sent with an
// Idempotency-Key, under which it is safe to repeat.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	askTimeout    = 30 * time.Second // of a request that doesn't wait for a run
	headerTimeout = 30 * time.Second // until a stream's headers
	silence       = 60 * time.Second // of a stream, which beats every 15 s
	maxAnswer     = 1 << 30          // bytes of one answer
)

// Config makes a Client.
type Config struct {
	// BaseURL is the server's, such as "http://127.0.0.1:8080",
	// "https://agents.example" or "unix:///run/stromboli.sock".
	BaseURL string
	// TLS is how https servers are verified; nil: by the system's certificates.
	TLS *tls.Config
	// Token is sent as Authorization: Bearer, if set.
	Token string
	// Patience is how long a server may be away before a call that repeats
	// itself gives up; 2 min.
	Patience time.Duration
	// Transport replaces the client's own, for tests.
	Transport http.RoundTripper
}

// Client is safe for concurrent use.
type Client struct {
	base     *url.URL
	token    string
	patience time.Duration
	hc       *http.Client
}

// New makes a client and connects to nothing.
func New(cfg Config) (*Client, error) {
	u, socket, err := parseAddress(cfg.BaseURL)
	if err != nil {
		return nil, err
	}
	if cfg.Patience == 0 {
		cfg.Patience = 2 * time.Minute
	}
	if cfg.Transport == nil {
		cfg.Transport = transport(socket, cfg.TLS)
	}
	return &Client{base: u, token: cfg.Token, patience: cfg.Patience, hc: &http.Client{Transport: cfg.Transport}}, nil
}

// CloseIdle closes connections that no call is using.
func (c *Client) CloseIdle() { c.hc.CloseIdleConnections() }

// Option changes one call.
type Option func(*call)

// WithIdempotencyKey names the request, so that it can be repeated from
// elsewhere (another process, after a crash) without starting a second run.
func WithIdempotencyKey(key string) Option { return func(c *call) { c.key = key } }

// call is one request; its body is kept for repetition.
type call struct {
	method, path string
	query        url.Values
	body         []byte
	lines        io.Reader // a body of lines of JSON, which can't be repeated
	key          string
	lastID       string
	accept       string
}

func submission(path string, spec stromboli.RunSpec, opts []Option) (call, error) {
	body, err := json.Marshal(spec)
	if err != nil {
		return call{}, fmt.Errorf("encode the request: %w", err)
	}
	c := call{method: http.MethodPost, path: path, body: body, key: stromboli.NewToken()}
	for _, o := range opts {
		o(&c)
	}
	return c, nil
}

func (c *Client) request(ctx context.Context, k call) (*http.Request, error) {
	u := *c.base
	u.Path += k.path
	u.RawQuery = k.query.Encode()
	var body io.Reader
	if k.body != nil {
		body = bytes.NewReader(k.body)
	}
	if k.lines != nil {
		body = k.lines
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.method, k.path, err)
	}
	set := func(name, value string) {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if k.body != nil {
		set("Content-Type", "application/json")
	}
	if k.lines != nil {
		set("Content-Type", "application/jsonl")
	}
	set("Accept", k.accept)
	set("Idempotency-Key", k.key)
	set("Last-Event-ID", k.lastID)
	if c.token != "" {
		set("Authorization", "Bearer "+c.token)
	}
	return req, nil
}

// ask sends a call once and decodes a success's body into out, which may be
// nil. Other answers are errors.
func (c *Client) ask(ctx context.Context, k call, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, body, err := c.roundTrip(ctx, k)
	if err != nil {
		return err
	}
	if status.StatusCode/100 != 2 {
		return errorOf(status, body)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s %s: the answer is not what it should be: %w", k.method, k.path, err)
	}
	return nil
}

func (c *Client) roundTrip(ctx context.Context, k call) (*http.Response, []byte, error) {
	resp, err := c.send(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	body, err := readAnswer(k, resp)
	return resp, body, err
}

// open sends a call once; answers that are no success are errors. The caller
// closes the body.
func (c *Client) open(ctx context.Context, k call) (io.ReadCloser, error) {
	resp, err := c.send(ctx, k)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	body, err := readAnswer(k, resp)
	if err != nil {
		return nil, err
	}
	return nil, errorOf(resp, body)
}

func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	req, err := c.request(ctx, k)
	if err != nil {
		return nil, err
	}
	return c.hc.Do(req) // its error names method and URL
}

// readAnswer reads a whole body and closes it.
func readAnswer(k call, resp *http.Response) ([]byte, error) {
	defer func() { _ = resp.Body.Close() }() // nothing is lost by it
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s %s: read the answer: %w", k.method, k.path, err)
	}
	return body, nil
}

// params builds a query of what is set.
type params struct{ url.Values }

func (p params) set(name, value string) {
	if value != "" {
		p.Set(name, value)
	}
}

func (p params) since(t time.Time) {
	if !t.IsZero() {
		p.Set("since", t.UTC().Format(time.RFC3339Nano))
	}
}

// page asks for the part of a list after a cursor.
func (p params) page(limit int, cursor string) {
	if limit != 0 {
		p.Set("limit", strconv.Itoa(limit))
	}
	p.set("cursor", cursor)
}

// errorOf rebuilds the server's error.
func errorOf(resp *http.Response, body []byte) *stromboli.Error {
	var b struct {
		Error   string             `json:"error"`
		Code    stromboli.Code     `json:"code"`
		Details []stromboli.Detail `json:"details"`
	}
	e := &stromboli.Error{Code: stromboli.Internal, Message: "the server answered " + resp.Status}
	if json.Unmarshal(body, &b) == nil && b.Error != "" {
		e.Message, e.Details = b.Error, b.Details
		if b.Code != "" {
			e.Code = b.Code
		}
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	return e
}

// backoff paces repetitions: 50 ms at first, doubling to 3 s, with jitter,
// until the server has been away for longer than the patience.
type backoff struct {
	patience time.Duration
	since    time.Time // of the first failure in a row
	pause    time.Duration
}

// wait returns cause when it is no use to go on.
func (b *backoff) wait(ctx context.Context, cause error, atLeast time.Duration) error {
	now := time.Now()
	if b.since.IsZero() {
		b.since, b.pause = now, 50*time.Millisecond
	}
	if now.Sub(b.since) > b.patience {
		return fmt.Errorf("the server is away for %s: %w", now.Sub(b.since).Round(time.Second), cause)
	}
	pause := max(atLeast, b.pause/2+rand.N(b.pause)) //nolint:gosec // jitter, not a secret
	b.pause = min(2*b.pause, 3*time.Second)
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *backoff) reset() { b.since = time.Time{} }

// passing reports whether an error may go away by itself: everything that is
// not an answer, save for a certificate that isn't trusted, and the answers of a
// server that is stopping or is asked too often.
func passing(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if e, ok := errors.AsType[*stromboli.Error](err); ok {
		return e.Code == stromboli.Draining || e.Code == stromboli.RateLimited
	}
	return true
}

// pauseOf is how long the server asks to be left alone.
func pauseOf(err error) time.Duration {
	if e, ok := errors.AsType[*stromboli.Error](err); ok && e.Code == stromboli.RateLimited {
		return e.RetryAfter
	}
	return 0
}
