package main

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed all:shim
var shimFiles embed.FS

// shimWhole reports whether the shim that was installed is still there: a program
// of the right size.
func shimWhole(path string) bool {
	want, err := fs.Stat(shimFiles, "shim/stromboli-shim")
	if err != nil {
		return false
	}
	have, err := os.Stat(path)
	return err == nil && have.Mode().IsRegular() && have.Size() == want.Size() && have.Mode()&0o111 != 0
}

// installShim writes the embedded shim below a directory, by its hash:
// sandboxes of the release before keep mounting theirs.
func installShim(shared string) (string, error) {
	b, err := shimFiles.ReadFile("shim/stromboli-shim")
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("this build has no shim for the sandboxes: build it with `make build`")
	}
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	dir := filepath.Join(shared, "shim", hex.EncodeToString(sum[:6]))
	path := filepath.Join(dir, "stromboli-shim")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return path, nil
	}
	// A rootless sandbox's root is "other" on this side.
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // below the 0700 data directory
		return "", fmt.Errorf("installing the shim: %w", err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, b, 0o755); err != nil { //nolint:gosec // a program
		return "", fmt.Errorf("installing the shim: %w", err)
	}
	if err := os.Chmod(temp, 0o755); err != nil { //nolint:gosec // whatever the umask is
		return "", fmt.Errorf("installing the shim: %w", err)
	}
	return path, os.Rename(temp, path)
}
