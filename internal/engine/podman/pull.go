package podman

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// maxPullLine bounds one line of a pull's answer.
const maxPullLine = 1 << 20

// pullLine is one line of a pull's answer: text of its progress, a fault, or
// what was pulled.
type pullLine struct {
	Stream string   `json:"stream"`
	Error  string   `json:"error"`
	Images []string `json:"images"`
	ID     string   `json:"id"`
}

// ImagePull implements engine.Images. The engine tells of layers, not of bytes.
func (c *Client) ImagePull(ctx context.Context, p engine.Pull, progress func(engine.PullProgress)) (string, error) {
	query := url.Values{"reference": {p.Ref}, "policy": {"always"}}
	for name, value := range map[string]string{"OS": p.OS, "Arch": p.Architecture, "Variant": p.Variant} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if p.Insecure {
		query.Set("tlsVerify", "false")
	}
	header, err := loginHeader("", p.Login)
	if err != nil {
		return "", err
	}
	op := "pull image " + p.Ref
	resp, err := c.do(ctx, request{op: op, method: http.MethodPost, path: "/images/pull", query: query, header: header})
	if err != nil {
		return "", registryError(err)
	}
	defer func() { _ = resp.Body.Close() }() // which ends a pull that goes on
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxPullLine)
	var at engine.PullProgress
	var id string
	for lines.Scan() {
		var line pullLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			continue // of a kind that other releases may send
		}
		switch {
		case line.Error != "":
			return "", registryError(&engine.Error{Op: op, Status: resp.StatusCode, Message: line.Error, Kind: kindOf(0, line.Error, nil)})
		case line.ID != "":
			id = line.ID
		case len(line.Images) > 0:
			id = line.Images[0]
		default:
			if next := after(at, line.Stream); next != at && progress != nil {
				at = next
				progress(at)
			}
		}
	}
	switch {
	case id != "":
		return id, nil
	case lines.Err() != nil:
		return "", transportError(ctx, op, lines.Err())
	}
	return "", transportError(ctx, op, io.ErrUnexpectedEOF)
}

// after is how far a pull is that says text.
func after(at engine.PullProgress, text string) engine.PullProgress {
	switch {
	case strings.HasPrefix(text, "Copying blob"):
		return engine.PullProgress{Stage: engine.PullCopying, Layers: at.Layers + 1}
	case strings.HasPrefix(text, "Writing manifest"):
		at.Stage = engine.PullStoring
	}
	return at
}

// loginHeader is how a login reaches the engine: for one registry by its name,
// or for the image that is asked for.
func loginHeader(registry string, login *engine.Login) (http.Header, error) {
	if login == nil {
		return nil, nil
	}
	type entry struct {
		Username      string `json:"username,omitempty"`
		Password      string `json:"password,omitempty"`
		IdentityToken string `json:"identitytoken,omitempty"`
	}
	var value any = entry(*login)
	if registry != "" {
		value = map[string]entry{registry: entry(*login)}
	}
	b, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return http.Header{"X-Registry-Auth": {base64.URLEncoding.EncodeToString(b)}}, nil
}

// registryError tells the faults of registries apart, by the words that the
// engine uses: its own faults have a kind already.
func registryError(err error) error {
	e, ok := errors.AsType[*engine.Error](err)
	if !ok || e.Kind != nil && !errors.Is(e.Kind, engine.ErrNotFound) && !errors.Is(e.Kind, engine.ErrInvalid) {
		return err
	}
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(strings.ToLower(e.Message), p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("unauthorized", "authentication required", "access denied", "access to the resource is denied", "status 403", "403 (forbidden)"):
		e.Kind = engine.ErrDenied
	case has("manifest unknown", "name unknown", "repository name not known", "no image found in manifest list", "no image found in image index", "404 (not found)"), e.Status == http.StatusNotFound:
		e.Kind = engine.ErrImageMissing
	case has("unexpected eof", "connection reset", "broken pipe", "unexpected end of stream"):
		e.Kind = engine.ErrInterrupted
	default:
		e.Kind = engine.ErrRegistry
	}
	return err
}

// ImageSearch implements engine.Images.
func (c *Client) ImageSearch(ctx context.Context, s engine.Search) ([]engine.FoundImage, error) {
	query := url.Values{"term": {s.Term}, "limit": {strconv.Itoa(s.Limit)}, "noTrunc": {"true"}}
	if s.Insecure {
		query.Set("tlsVerify", "false")
	}
	header, err := loginHeader(s.Registry, s.Login)
	if err != nil {
		return nil, err
	}
	var answer []struct {
		Index, Name, Description, Official, Automated string
		Stars                                         int
	}
	err = c.call(ctx, request{op: "search for image " + s.Term, method: http.MethodGet, path: "/images/search", query: query, header: header, limit: queryLimit}, &answer)
	if err != nil {
		return nil, registryError(err)
	}
	found := make([]engine.FoundImage, 0, len(answer))
	for _, a := range answer {
		found = append(found, engine.FoundImage{
			Index: a.Index, Name: a.Name, Description: a.Description, Stars: a.Stars, Official: a.Official != "", Automated: a.Automated != "",
		})
	}
	return found, nil
}
