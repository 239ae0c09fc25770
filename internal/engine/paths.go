package engine

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
)

// FindSymlink gives the first element of an absolute path that is a symlink in
// a container, as a path; "" when there is none, or when the path ends in what
// doesn't exist before one is met. It asks once per element.
func FindSymlink(ctx context.Context, c Containers, id, name string) (string, error) {
	at := "/"
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		at = path.Join(at, part)
		st, err := c.StatPath(ctx, id, at)
		switch {
		case errors.Is(err, ErrNotFound):
			return "", nil
		case err != nil:
			return "", err
		case st.Mode&fs.ModeSymlink != 0:
			return at, nil
		}
	}
	return "", nil
}

// PathExists reports whether a path exists in a container. Symlinks on the way
// are followed; one as the last element counts as there.
func PathExists(ctx context.Context, c Containers, id, name string) (bool, error) {
	_, err := c.StatPath(ctx, id, name)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
