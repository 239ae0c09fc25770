package client

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Delivery is a message to a job's webhook. LastStatus and LastError are of the
// newest attempt; NextAttemptAt and FinishedAt are zero where there is none.
type Delivery struct {
	ID            string                   `json:"id"` // the header webhook-id
	JobID         string                   `json:"job_id"`
	Host          string                   `json:"host"`
	Status        stromboli.DeliveryStatus `json:"status"`
	Attempts      int                      `json:"attempts"`
	LastStatus    int                      `json:"last_status"`
	LastError     string                   `json:"last_error"`
	NextAttemptAt time.Time                `json:"next_attempt_at"`
	CreatedAt     time.Time                `json:"created_at"`
	UpdatedAt     time.Time                `json:"updated_at"`
	FinishedAt    time.Time                `json:"finished_at"`
}

// DeliveryFilter selects deliveries; zero fields don't select.
type DeliveryFilter struct {
	JobID    string
	Statuses []stromboli.DeliveryStatus
	Limit    int
	Cursor   string // NextCursor of the page before
}

// DeliveryPage is a part of the list of deliveries, newest first.
type DeliveryPage struct {
	Deliveries []Delivery `json:"deliveries"`
	NextCursor string     `json:"next_cursor"`
	HasMore    bool       `json:"has_more"`
}

// Deliveries returns a page of the webhooks' deliveries.
func (c *Client) Deliveries(ctx context.Context, f DeliveryFilter) (DeliveryPage, error) {
	q := params{url.Values{}}
	for _, s := range f.Statuses {
		q.Add("status", string(s))
	}
	q.set("job_id", f.JobID)
	q.page(f.Limit, f.Cursor)
	var page DeliveryPage
	err := c.ask(ctx, call{method: http.MethodGet, path: "/webhooks/deliveries", query: q.Values}, &page)
	return page, err
}

// Redeliver has a delivery sent again. The error is stromboli.Conflict while it
// is being sent.
func (c *Client) Redeliver(ctx context.Context, id string) (Delivery, error) {
	var d Delivery
	err := c.ask(ctx, call{method: http.MethodPost, path: "/webhooks/deliveries/" + url.PathEscape(id) + "/redeliver"}, &d)
	return d, err
}
