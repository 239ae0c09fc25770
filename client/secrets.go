package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// Secret describes a secret that the server keeps; nobody is told its value.
type Secret struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
}

// Secrets lists the secrets by name.
func (c *Client) Secrets(ctx context.Context) ([]Secret, error) {
	var list struct {
		Secrets []Secret `json:"secrets"`
	}
	err := c.ask(ctx, call{method: http.MethodGet, path: "/secrets"}, &list)
	return list.Secrets, err
}

// CreateSecret has the server keep a value. The error is stromboli.Conflict
// where there is one of the name.
func (c *Client) CreateSecret(ctx context.Context, name, value string) error {
	body, err := json.Marshal(map[string]string{"name": name, "value": value})
	if err != nil {
		return err
	}
	return c.ask(ctx, call{method: http.MethodPost, path: "/secrets", body: body}, nil)
}

// DeleteSecret has the server forget one.
func (c *Client) DeleteSecret(ctx context.Context, name string) error {
	return c.ask(ctx, call{method: http.MethodDelete, path: "/secrets/" + url.PathEscape(name)}, nil)
}
