package podman

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

func imagePath(ref, verb string) string {
	return "/images/" + url.PathEscape(ref) + verb
}

// ImageExists implements engine.Images.
func (c *Client) ImageExists(ctx context.Context, ref string) (bool, error) {
	err := c.call(ctx, request{
		op: "look for image " + ref, method: http.MethodGet, path: imagePath(ref, "/exists"),
		limit: queryLimit, missing: engine.ErrImageMissing,
	}, nil)
	if errors.Is(err, engine.ErrImageMissing) {
		return false, nil
	}
	return err == nil, err
}

// ImageInspect implements engine.Images.
func (c *Client) ImageInspect(ctx context.Context, ref string) (engine.Image, error) {
	var a struct {
		ID           string `json:"Id"`
		Digest       string
		RepoTags     []string
		RepoDigests  []string
		Labels       map[string]string
		Created      time.Time
		Size         int64
		OS           string `json:"Os"`
		Architecture string
		Config       struct {
			User       string
			Env        []string
			Entrypoint []string
			Cmd        []string
			WorkingDir string
		}
	}
	err := c.call(ctx, request{
		op: "inspect image " + ref, method: http.MethodGet, path: imagePath(ref, "/json"),
		limit: queryLimit, missing: engine.ErrImageMissing,
	}, &a)
	return engine.Image{
		ID: a.ID, Digest: a.Digest, Names: a.RepoTags, DigestNames: a.RepoDigests, Labels: a.Labels, Created: a.Created, Bytes: a.Size,
		Env: a.Config.Env, Entrypoint: a.Config.Entrypoint, Command: a.Config.Cmd, User: a.Config.User,
		Workdir: a.Config.WorkingDir, OS: a.OS, Architecture: a.Architecture,
	}, err
}

// ImageList implements engine.Images.
func (c *Client) ImageList(ctx context.Context) ([]engine.Image, error) {
	var answer []struct {
		ID          string `json:"Id"`
		Digest      string
		RepoTags    []string
		RepoDigests []string
		Labels      map[string]string
		Created     int64
		Size        int64
	}
	err := c.call(ctx, request{op: "list images", method: http.MethodGet, path: "/images/json", limit: queryLimit}, &answer)
	if err != nil {
		return nil, err
	}
	list := make([]engine.Image, 0, len(answer))
	for _, a := range answer {
		list = append(list, engine.Image{
			ID: a.ID, Digest: a.Digest, Names: a.RepoTags, DigestNames: a.RepoDigests, Labels: a.Labels, Created: unixTime(a.Created), Bytes: a.Size,
		})
	}
	return list, nil
}

// ImageLoad implements engine.Images.
func (c *Client) ImageLoad(ctx context.Context, archive io.Reader) ([]string, error) {
	var answer struct {
		Names []string
	}
	err := c.call(ctx, request{
		op: "load image", method: http.MethodPost, path: "/images/load", body: archive, limit: bulkLimit,
	}, &answer)
	return answer.Names, err
}

// ImageImport implements engine.Images.
func (c *Client) ImageImport(ctx context.Context, rootfs io.Reader, ref string) (string, error) {
	var answer struct {
		ID string `json:"Id"`
	}
	err := c.call(ctx, request{
		op: "import image " + ref, method: http.MethodPost, path: "/images/import",
		query: url.Values{"reference": {ref}}, body: rootfs, limit: bulkLimit,
	}, &answer)
	return answer.ID, err
}

// ImageRemove implements engine.Images.
func (c *Client) ImageRemove(ctx context.Context, ref string) error {
	err := c.call(ctx, request{
		op: "remove image " + ref, method: http.MethodDelete, path: imagePath(ref, ""),
		limit: changeLimit, missing: engine.ErrImageMissing,
	}, nil)
	if errors.Is(err, engine.ErrImageMissing) {
		return nil
	}
	return err
}
