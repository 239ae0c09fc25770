// Package backup makes, checks and puts back the files of a backup.
//
// A backup is a directory: manifest.json, which names every other file with its
// size and SHA-256; stromboli.db; blobs/, below it what the database's rows name; secrets.key
// and sessions.tar, where they were asked for. It appears under its name only when it is whole and on the disk. The package
// knows files; what is in the database is the store's.
package backup

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// The names in a backup.
const (
	ManifestName = "manifest.json"
	Database     = "stromboli.db"
	Blobs        = "blobs"
	KeyFile      = "secrets.key"
	Sessions     = "sessions.tar"

	format      = 1
	maxManifest = 256 << 20
)

// Manifest tells what a backup holds.
type Manifest struct {
	Format   int       `json:"format"`
	Program  string    `json:"program"` // the release that made it
	At       time.Time `json:"at"`      // the moment whose state it is
	Schema   int64     `json:"schema"`  // of the database
	Runs     int64     `json:"runs"`
	Sessions int64     `json:"sessions"`
	Files    []File    `json:"files"`
}

// File is one file of a backup.
type File struct {
	Path   string `json:"path"` // below the backup's directory
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Has reports whether a file is in the backup.
func (m Manifest) Has(name string) bool {
	for _, f := range m.Files {
		if f.Path == name {
			return true
		}
	}
	return false
}

// Writer makes a backup under a temporary name beside its own.
type Writer struct {
	dest  string
	temp  string
	root  *os.Root
	files []File
	dirs  map[string]bool
}

// Create begins a backup; an error where there is something at dest.
func Create(dest string) (*Writer, error) {
	dest, err := filepath.Abs(dest)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dest); err == nil {
		return nil, fmt.Errorf("%s: %w; a backup replaces nothing", dest, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	temp := dest + ".partial-" + rand.Text()[:8]
	if err := os.Mkdir(temp, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(temp)
	if err != nil {
		return nil, errors.Join(err, os.Remove(temp))
	}
	return &Writer{dest: dest, temp: temp, root: root, dirs: map[string]bool{".": true}}, nil
}

// Path is where a file of the backup is to be made by somebody else; Added counts
// it in.
func (w *Writer) Path(name string) string { return filepath.Join(w.temp, filepath.FromSlash(name)) }

// Added counts a file in that is there.
func (w *Writer) Added(ctx context.Context, name string) error {
	f, err := w.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size, sum, err := digest(ctx, f, io.Discard)
	w.files = append(w.files, File{Path: name, Size: size, SHA256: sum})
	return err
}

// Add copies what r holds into a new file.
func (w *Writer) Add(ctx context.Context, name string, r io.Reader) error {
	size, sum, err := w.add(ctx, name, func(f io.Writer) (int64, string, error) { return digest(ctx, r, f) })
	if err == nil {
		w.files = append(w.files, File{Path: name, Size: size, SHA256: sum})
	}
	return err
}

func (w *Writer) add(_ context.Context, name string, fill func(io.Writer) (int64, string, error)) (size int64, sum string, err error) {
	if err := w.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return 0, "", err
	}
	for d := path.Dir(name); !w.dirs[d]; d = path.Dir(d) {
		w.dirs[d] = true
	}
	f, err := w.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, sum, err = fill(f); err != nil {
		return 0, "", err
	}
	return size, sum, f.Sync()
}

// Commit writes the manifest and gives the backup its name; durable on return.
func (w *Writer) Commit(ctx context.Context, m Manifest) (Manifest, error) {
	m.Format, m.Files = format, w.files
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return m, err
	}
	_, _, err = w.add(ctx, ManifestName, func(f io.Writer) (int64, string, error) {
		n, err := f.Write(append(b, '\n'))
		return int64(n), "", err
	})
	if err != nil {
		return m, err
	}
	for d := range w.dirs {
		if err := syncDir(w.root, d); err != nil {
			return m, err
		}
	}
	if _, err := os.Lstat(w.dest); err == nil { // meanwhile; an empty directory would be replaced
		return m, fmt.Errorf("%s: %w; a backup replaces nothing", w.dest, fs.ErrExist)
	}
	if err := os.Rename(w.temp, w.dest); err != nil {
		return m, err
	}
	parent, err := os.OpenRoot(filepath.Dir(w.dest))
	if err != nil {
		return m, err
	}
	return m, errors.Join(syncDir(parent, "."), parent.Close())
}

// Close removes what was not committed.
func (w *Writer) Close() error { return errors.Join(w.root.Close(), os.RemoveAll(w.temp)) }

func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// digest copies and returns size and SHA-256.
func digest(ctx context.Context, r io.Reader, w io.Writer) (int64, string, error) {
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(sum, w), cancellable{ctx, r})
	return n, hex.EncodeToString(sum.Sum(nil)), err
}

// cancellable ends a copy when ctx is done.
type cancellable struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
