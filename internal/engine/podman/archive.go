package podman

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// StatPath implements engine.Containers.
func (c *Client) StatPath(ctx context.Context, id, path string) (engine.PathStat, error) {
	resp, err := c.do(ctx, request{
		op: "stat " + path + " in container " + id, method: http.MethodHead, path: containerPath(id, "/archive"),
		query: url.Values{"path": {path}}, limit: queryLimit,
	})
	if err != nil {
		return engine.PathStat{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Docker-Container-Path-Stat"))
	var stat struct {
		Name       string      `json:"name"`
		Size       int64       `json:"size"`
		Mode       fs.FileMode `json:"mode"`
		LinkTarget string      `json:"linkTarget"` // the path itself where it is no symlink
	}
	if err == nil {
		err = json.Unmarshal(data, &stat)
	}
	if err != nil {
		return engine.PathStat{}, fmt.Errorf("stat %s in container %s: the engine's answer is not understood: %w", path, id, err)
	}
	out := engine.PathStat{Name: stat.Name, Size: stat.Size, Mode: stat.Mode}
	if stat.Mode&fs.ModeSymlink != 0 {
		out.LinkTarget = stat.LinkTarget
	}
	return out, nil
}

// ReadFile implements engine.Containers.
func (c *Client) ReadFile(ctx context.Context, id, path string, limit int64) ([]byte, error) {
	op := "read " + path + " in container " + id
	resp, err := c.do(ctx, request{
		op: op, method: http.MethodGet, path: containerPath(id, "/archive"),
		query: url.Values{"path": {path}}, limit: queryLimit,
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	archive := tar.NewReader(resp.Body)
	header, err := archive.Next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, &engine.Error{Op: op, Message: "no such file", Kind: engine.ErrNotFound}
	case err != nil:
		return nil, transportError(ctx, op, err)
	case header.Typeflag != tar.TypeReg:
		return nil, &engine.Error{Op: op, Message: "not a regular file", Kind: engine.ErrInvalid}
	case header.Size > limit:
		return nil, &engine.Error{Op: op, Message: fmt.Sprintf("%d bytes, above the limit of %d", header.Size, limit), Kind: engine.ErrTooLarge}
	}
	data, err := io.ReadAll(io.LimitReader(archive, limit))
	if err != nil {
		return nil, transportError(ctx, op, err)
	}
	return data, nil
}
