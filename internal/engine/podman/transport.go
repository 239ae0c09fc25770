package podman

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/engine"
)

const (
	apiPrefix   = "/v4.0.0/libpod" // what every supported release serves
	compatInfo  = "/v1.40/info"
	queryLimit  = 30 * time.Second // for calls that only read
	changeLimit = 2 * time.Minute  // for calls that change something; a busy disk takes its time
	bulkLimit   = 30 * time.Minute // for images
	maxAnswer   = 64 << 20         // bytes of a JSON answer
	maxMessage  = 64 << 10         // bytes of an error's answer
)

// request is one call. Paths are relative to apiPrefix unless they begin with
// "/v".
type request struct {
	op      string // for errors: "start container x"
	method  string
	path    string
	query   url.Values
	body    any // nil, an io.Reader, or what is sent as JSON
	header  http.Header
	limit   time.Duration
	missing error // the kind of a 404; nil: ErrNotFound
	also    int   // a status beyond 2xx that is a success as well
}

func (c *Client) transport() *http.Transport {
	return &http.Transport{
		DialContext:           c.dial,
		MaxIdleConns:          16,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ResponseHeaderTimeout: 0, // wait answers late by nature; each call has its own deadline
	}
}

// dial connects to the service. A service of our own that is gone is started
// first: nothing has been sent yet, so that is safe for every call.
func (c *Client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := dialSocket(ctx, c.socket)
	if err == nil || c.service == nil || ctx.Err() != nil {
		return conn, err
	}
	if err := c.service.ensure(ctx); err != nil {
		return nil, err
	}
	return dialSocket(ctx, c.socket)
}

func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// listenerOf gives the pid of the process that made a listening socket, as the
// kernel knows it.
func listenerOf(ctx context.Context, socket string) (int, error) {
	conn, err := dialSocket(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// do sends r and gives the answer of a success; its body must be closed.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	if c.called == nil {
		return c.exchange(ctx, r)
	}
	began := time.Now()
	resp, err := c.exchange(ctx, r)
	c.called(operation(r.method, r.path), time.Since(began), err)
	return resp, err
}

func (c *Client) exchange(ctx context.Context, r request) (*http.Response, error) {
	cancel := context.CancelFunc(func() {})
	inner := ctx
	if r.limit > 0 {
		inner, cancel = context.WithTimeout(ctx, r.limit)
	}
	resp, err := c.send(inner, r)
	if err != nil {
		cancel()
		return nil, transportError(ctx, r.op, err)
	}
	resp.Body = &cancelBody{ReadCloser: resp.Body, cancel: cancel}
	if resp.StatusCode < 300 || resp.StatusCode == r.also {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, answerError(r, resp)
}

func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	var body io.Reader
	contentType := ""
	switch b := r.body.(type) {
	case nil:
	case io.Reader:
		body, contentType = b, "application/x-tar"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		body, contentType = bytes.NewReader(data), "application/json"
	}
	path := r.path
	if !strings.HasPrefix(path, "/v") {
		path = apiPrefix + path
	}
	target := "http://podman" + path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, r.header)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return c.http.Do(req)
}

// call sends r and reads a JSON answer into out (nil: not wanted).
func (c *Client) call(ctx context.Context, r request, out any) error {
	resp, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return transportError(ctx, r.op, err)
	case out == nil:
		return nil
	case len(data) > maxAnswer:
		return &engine.Error{Op: r.op, Status: resp.StatusCode, Message: "the engine's answer is too long", Kind: engine.ErrTooLarge}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s: the engine's answer is not understood: %w", r.op, err)
	}
	return nil
}

// transportError is for calls without an answer. The caller's own deadline or
// cancellation is its own affair; anything else means that the engine is away.
func transportError(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	if already, ok := errors.AsType[*engine.Error](err); ok {
		return fmt.Errorf("%s: %w", op, already)
	}
	message := err.Error()
	if u, ok := errors.AsType[*url.Error](err); ok {
		message = u.Err.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		message = "the engine gave no answer in time"
	}
	return &engine.Error{Op: op, Message: message, Kind: engine.ErrUnavailable, Cause: err}
}

// answerError turns an engine's refusal into an error with its own words.
func answerError(r request, resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	var answer struct {
		Cause   string `json:"cause"`
		Message string `json:"message"`
	}
	message := strings.TrimSpace(string(data))
	if json.Unmarshal(data, &answer) == nil && answer.Message != "" {
		message = answer.Message
	}
	if message == "" {
		message = resp.Status
	}
	e := &engine.Error{Op: r.op, Status: resp.StatusCode, Message: message}
	e.Kind = kindOf(resp.StatusCode, message, r.missing)
	if hint := hintFor(message); hint != "" {
		e.Message += " (" + hint + ")"
	}
	return e
}

// kindOf classifies a refusal. Releases differ in the status that they give
// for one and the same fault, so the words count before the number.
func kindOf(status int, message string, missing error) error {
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(message, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("no space left on device", "disk quota exceeded"):
		return engine.ErrStorageFull
	case has("image not known", "no such image"):
		return engine.ErrImageMissing
	case has("no such secret", "no secret with name or id"):
		return engine.ErrSecretMissing
	case has("no such container", "no container with"):
		return engine.ErrNotFound
	case has("already in use", "name is in use", "image is in use", "image used by", "can only kill running containers", "container state improper"):
		return engine.ErrConflict
	case status == http.StatusNotFound && missing != nil:
		return missing
	case status == http.StatusNotFound:
		return engine.ErrNotFound
	case status == http.StatusConflict:
		return engine.ErrConflict
	case status == http.StatusBadRequest:
		return engine.ErrInvalid
	}
	return nil
}

// hintFor says what to do about the faults of hosts that are met most often.
func hintFor(message string) string {
	switch {
	case strings.Contains(message, "requires additional UIDs"):
		return hintSubID
	case strings.Contains(message, "newuidmap"), strings.Contains(message, "newgidmap"):
		return hintUIDMap
	case strings.Contains(message, "cgroups in hybrid mode not supported"):
		return "install runc: crun does not work with this machine's cgroups"
	case strings.Contains(message, "error setting rlimit"):
		return "the engine's service may not raise limits; set default_ulimits in its containers.conf"
	}
	return ""
}

// cancelBody ends the call's own deadline with its answer.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}
