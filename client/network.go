package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/tomblancdev/stromboli"
)

// SetNetwork replaces what a run may reach and returns what is in force then.
func (c *Client) SetNetwork(ctx context.Context, id string, n stromboli.Network) (stromboli.Network, error) {
	body, err := json.Marshal(n)
	if err != nil {
		return n, err
	}
	var now stromboli.Network
	err = c.ask(ctx, call{method: http.MethodPatch, path: "/jobs/" + url.PathEscape(id) + "/network", body: body}, &now)
	return now, err
}

// Attestation is what was in force for a run's sandbox. The error is
// stromboli.NotFound before its agent was started.
func (c *Client) Attestation(ctx context.Context, id string) (stromboli.Attestation, error) {
	var a stromboli.Attestation
	err := c.ask(ctx, call{method: http.MethodGet, path: "/jobs/" + url.PathEscape(id) + "/attestation"}, &a)
	return a, err
}

// EgressPage is a part of the records of a run's connections.
type EgressPage struct {
	Records   []stromboli.EgressRecord `json:"records"`
	NextAfter int64                    `json:"next_after"`
	HasMore   bool                     `json:"has_more"`
}

// Egress returns up to limit records of a run's connections after a position.
func (c *Client) Egress(ctx context.Context, id string, after int64, limit int) (EgressPage, error) {
	var page EgressPage
	query := url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {strconv.Itoa(limit)}}
	err := c.ask(ctx, call{method: http.MethodGet, path: "/jobs/" + url.PathEscape(id) + "/egress", query: query}, &page)
	return page, err
}
