package podman

import (
	"context"
	"net/http"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// wireSecret has the field names of libpod's own type; an absolute Target is
// the file's place, else it would lie in /run/secrets.
type wireSecret struct {
	Source string
	Target string
	UID    uint32
	GID    uint32
	Mode   uint32
}

// secretMode lets the container's root read a secret, and nobody else.
const secretMode = 0o400

// SecretList implements engine.Secrets.
func (c *Client) SecretList(ctx context.Context) ([]engine.Secret, error) {
	var list []struct {
		ID   string
		Spec struct{ Name string }
	}
	err := c.call(ctx, request{op: "list the engine's secrets", method: http.MethodGet, path: "/secrets/json", limit: queryLimit}, &list)
	out := make([]engine.Secret, 0, len(list))
	for _, s := range list {
		out = append(out, engine.Secret{ID: s.ID, Name: s.Spec.Name})
	}
	return out, err
}
