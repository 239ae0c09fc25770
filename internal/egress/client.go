package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/unixsock"
)

const controlLimit = 10 * time.Second

// ErrRejected is in the chain when egress answered and said no; everything
// else that fails is the connection's fault and may be tried again.
var ErrRejected = errors.New("egress refused")

// Client speaks to an egress process by its control socket. It is stateless:
// see Supervisor for a process that is kept running.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the egress process that serves dir.
func NewClient(dir string) *Client {
	path := filepath.Join(dir, controlSocket)
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return unixsock.Dial(ctx, path)
		},
		// A kept connection could lead to a predecessor that is draining.
		DisableKeepAlives: true,
	}}}
}

// Status asks the process about itself; it fails when none answers.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return Status{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var st Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxControlBody)).Decode(&st); err != nil {
		return Status{}, fmt.Errorf("egress status: %w", err)
	}
	return st, nil
}

// SetConfig replaces the process's configuration.
func (c *Client) SetConfig(ctx context.Context, cfg Config) error {
	return c.call(ctx, http.MethodPut, "/config", cfg)
}

// Add registers a sandbox, or changes its registration; on return egress
// listens on its socket.
func (c *Client) Add(ctx context.Context, sb Sandbox) error {
	return c.call(ctx, http.MethodPut, "/sandboxes/"+url.PathEscape(sb.ID), sb)
}

// network is what a sandbox may reach by now.
func (c *Client) network(ctx context.Context, id string) (n stromboli.Network, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/sandboxes/"+url.PathEscape(id)+"/network", nil)
	if err != nil {
		return n, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxControlBody)).Decode(&n); err != nil {
		return n, fmt.Errorf("egress: network of %s: %w", id, err)
	}
	return n, nil
}

// Records returns a sandbox's records after a position, at most limit, waiting
// for one for so long; up to the position they are forgotten.
func (c *Client) Records(ctx context.Context, id string, after int64, limit int, wait time.Duration) ([]stromboli.EgressRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+controlLimit)
	defer cancel()
	path := fmt.Sprintf("/sandboxes/%s/records?after=%d&limit=%d&wait=%s", url.PathEscape(id), after, limit, wait)
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var records []stromboli.EgressRecord
	if err := json.NewDecoder(resp.Body).Decode(&records); err != nil {
		return nil, fmt.Errorf("egress records: %w", err)
	}
	return records, nil
}

// Remove ends a sandbox's connections and forgets it with its records; an unknown one is fine.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/sandboxes/"+url.PathEscape(id), nil)
}

// Shutdown asks the process to free its sockets at once and to end when what
// is in flight has ended.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/shutdown", nil)
}

// watch returns a reader that ends when the process does.
func (c *Client) watch(ctx context.Context) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, "/watch", nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (c *Client) call(ctx context.Context, method, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, controlLimit)
	defer cancel()
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("egress %s: %w", path, err)
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://egress"+path, r)
	if err != nil {
		return nil, fmt.Errorf("egress %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // what there is of it
	return nil, fmt.Errorf("%w: %s", ErrRejected, strings.TrimSpace(string(text)))
}
