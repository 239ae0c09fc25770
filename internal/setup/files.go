package setup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// tempDir makes a directory beside target, on its file system, after removing
// what an interrupted call left there. The caller holds target's lock.
func tempDir(target string) (string, error) {
	dir, base := filepath.Split(target)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // public files
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	pattern := ".tmp-" + base + "-"
	old, err := filepath.Glob(filepath.Join(dir, pattern+"*"))
	if err != nil {
		return "", fmt.Errorf("look for leftovers: %w", err)
	}
	for _, path := range old {
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("remove a leftover: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(dir, pattern)
	if err != nil {
		return "", fmt.Errorf("make a temporary directory: %w", err)
	}
	return tmp, nil
}

// replace renames a finished tree or file over target and makes that durable.
func replace(from, target string) error {
	if st, err := os.Lstat(target); err == nil && st.IsDir() {
		// A directory that isn't empty can't be renamed over.
		if err := os.RemoveAll(target); err != nil {
			return fmt.Errorf("remove the damaged %s: %w", target, err)
		}
	}
	if err := os.Rename(from, target); err != nil {
		return fmt.Errorf("put %s in place: %w", target, err)
	}
	return syncDir(filepath.Dir(target))
}

// writeFile writes and syncs a new file, at most limit bytes of it.
func writeFile(path string, mode os.FileMode, r io.Reader, limit int64) (int64, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", path, err)
	}
	n, err := io.Copy(f, io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err == nil {
		err = f.Chmod(mode) // whatever the umask was
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return n, fmt.Errorf("write %s: %w", path, err)
	}
	return n, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
