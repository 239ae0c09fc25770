// Package blob keeps bytes by key in a directory.
//
// It owns everything below that directory. It promises that what Put returned
// without an error survives kill -9 and the loss of power, whole: a reader sees
// the old bytes or the new ones, never a part. Keys are slash-separated names of
// letters, digits, dash, underscore and dot; one that could name anything
// outside the directory is refused, and symbolic links that lead out of it are
// not followed. It knows nothing of what the bytes mean and never deletes by
// itself, unfinished files of a dead process excepted.
package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/tomblancdev/stromboli"
)

const (
	dirMode  = 0o700
	fileMode = 0o600
	maxKey   = 512
	maxName  = 200
	// tempDir can't be a key: names don't begin with a dot.
	tempDir = ".tmp"
)

// Dir is a directory of blobs. Its methods may be called from many goroutines;
// of concurrent Puts to one key the last to finish wins. One process at a time
// may have a directory open.
type Dir struct {
	root *os.Root

	// mu keeps Delete from removing a directory that a Put has just made sure
	// of. Held for the moments of a rename or an unlink, not while bytes flow.
	mu sync.Mutex
}

// Open makes the directory where it is missing and removes the unfinished files
// that a dead process left.
func Open(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open blobs: %w", err)
	}
	err = root.RemoveAll(tempDir)
	if err == nil {
		err = root.Mkdir(tempDir, dirMode)
	}
	if err == nil {
		err = syncDir(root, ".")
	}
	if err != nil {
		return nil, fmt.Errorf("open blobs: %w", errors.Join(err, root.Close()))
	}
	return &Dir{root: root}, nil
}

// Close lets go of the directory.
func (d *Dir) Close() error { return d.root.Close() }

// Put stores what r holds under key, in place of what was there, and returns its
// size. It streams: memory does not grow with the size. Durable on return;
// nothing has changed on an error. StorageFull where the disk is.
func (d *Dir) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	temp := path.Join(tempDir, rand.Text())
	n, err := d.write(ctx, temp, r)
	if err == nil {
		err = d.publish(temp, key)
	}
	if err != nil {
		_ = d.root.Remove(temp)
		return 0, classify("put", key, err)
	}
	return n, nil
}

func (d *Dir) write(ctx context.Context, name string, r io.Reader) (n int64, err error) {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if n, err = io.Copy(f, ctxReader{ctx, r}); err != nil {
		return 0, err
	}
	return n, f.Sync()
}

// publish renames the finished file over the key, and makes that durable: the
// file's entry and those of directories that were made for it.
func (d *Dir) publish(temp, key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := path.Dir(key)
	var made []string
	for p := dir; p != "."; p = path.Dir(p) {
		if _, err := d.root.Stat(p); err == nil {
			break
		}
		made = append(made, path.Dir(p))
	}
	if err := d.root.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	if err := d.root.Rename(temp, key); err != nil {
		return err
	}
	for _, p := range append([]string{dir}, made...) {
		if err := syncDir(d.root, p); err != nil {
			return err
		}
	}
	return nil
}

// Get opens a blob; the caller closes it. What it reads stays the same when the
// key is overwritten or deleted meanwhile. Where there is none the error is
// both stromboli.NotFound and fs.ErrNotExist.
func (d *Dir) Get(_ context.Context, key string) (io.ReadCloser, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	f, err := d.root.Open(key)
	if err != nil {
		return nil, classify("get", key, err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, classify("get", key, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Exists reports whether there is a blob of that key.
func (d *Dir) Exists(_ context.Context, key string) (bool, error) {
	if err := checkKey(key); err != nil {
		return false, err
	}
	fi, err := d.root.Lstat(key)
	if isMissing(err) {
		return false, nil
	}
	if err != nil {
		return false, classify("look for", key, err)
	}
	return fi.Mode().IsRegular(), nil
}

// Delete removes a blob, and directories that are empty then; durable on return.
// A missing one is success.
func (d *Dir) Delete(_ context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fi, err := d.root.Lstat(key)
	if isMissing(err) || (err == nil && fi.IsDir()) {
		return nil
	}
	if err == nil {
		err = d.root.Remove(key)
	}
	if err != nil {
		return classify("delete", key, err)
	}
	dir := path.Dir(key)
	for dir != "." && d.root.Remove(dir) == nil { // fails where it isn't empty
		dir = path.Dir(dir)
	}
	return classify("delete", key, syncDir(d.root, dir))
}

// DeleteAll removes every blob whose key begins with prefix and a slash;
// durable on return. That there are none is success.
func (d *Dir) DeleteAll(_ context.Context, prefix string) error {
	if err := checkKey(prefix); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	fi, err := d.root.Lstat(prefix)
	if isMissing(err) || (err == nil && !fi.IsDir()) {
		return nil
	}
	if err == nil {
		err = d.root.RemoveAll(prefix)
	}
	if err != nil {
		return classify("delete all of", prefix, err)
	}
	return classify("delete all of", prefix, syncDir(d.root, path.Dir(prefix)))
}

func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// checkKey takes names that mean the same on every file system and bucket.
func checkKey(key string) error {
	bad := func(why string) error {
		return stromboli.Errorf(stromboli.Invalid, "blob key %.80q %s", key, why)
	}
	if key == "" || len(key) > maxKey {
		return bad(fmt.Sprintf("must have 1 to %d bytes", maxKey))
	}
	for name := range strings.SplitSeq(key, "/") {
		if name == "" || name[0] == '.' || len(name) > maxName {
			return bad("has an empty, hidden or too long name")
		}
		for _, c := range []byte(name) {
			ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
			if !ok {
				return bad("may hold letters, digits, dash, underscore and dot only")
			}
		}
	}
	return nil
}

// ctxReader ends a copy when ctx is done.
type ctxReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
