package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// Source is a backup that is there.
type Source struct {
	Manifest Manifest
	root     *os.Root
}

// Open reads a backup's manifest.
func Open(dir string) (*Source, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	s := &Source{root: root}
	if err := s.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is not a whole backup: %w", dir, err), root.Close())
	}
	return s, nil
}

func (s *Source) read() error {
	f, err := s.root.Open(ManifestName)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s.Manifest); err != nil {
		return fmt.Errorf("%s: %w", ManifestName, err)
	}
	if s.Manifest.Format != format {
		return fmt.Errorf("its format is %d, and this program knows %d", s.Manifest.Format, format)
	}
	for _, file := range s.Manifest.Files {
		known := file.Path == Database || file.Path == KeyFile || file.Path == Sessions || strings.HasPrefix(file.Path, Blobs+"/")
		if !known || path.Clean(file.Path) != file.Path {
			return fmt.Errorf("%s names %.80q", ManifestName, file.Path)
		}
	}
	if !s.Manifest.Has(Database) {
		return fmt.Errorf("%s names no database", ManifestName)
	}
	return nil
}

// Verify reads every file and compares it with the manifest.
func (s *Source) Verify(ctx context.Context) error {
	for _, file := range s.Manifest.Files {
		if err := s.copy(ctx, file, io.Discard); err != nil {
			return err
		}
	}
	return nil
}

// Copy puts a file's bytes into a new file below root, durable on return but for
// its directory's entry.
func (s *Source) Copy(ctx context.Context, file File, root *os.Root, name string) (err error) {
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := s.copy(ctx, file, f); err != nil {
		return err
	}
	return f.Sync()
}

func (s *Source) copy(ctx context.Context, file File, w io.Writer) error {
	f, err := s.root.Open(file.Path)
	if err != nil {
		return fmt.Errorf("the backup is damaged: %w", err)
	}
	defer func() { _ = f.Close() }()
	size, sum, err := digest(ctx, f, w)
	if err != nil {
		return fmt.Errorf("%s: %w", file.Path, err)
	}
	if size != file.Size || sum != file.SHA256 {
		return fmt.Errorf("the backup is damaged: %s has %d bytes with the SHA-256 %s, and had %d with %s", file.Path, size, sum, file.Size, file.SHA256)
	}
	return nil
}

// Path is where a file of the backup lies.
func (s *Source) Path(name string) string { return path.Join(s.root.Name(), name) }

// Read opens a file of the backup.
func (s *Source) Read(name string) (*os.File, error) { return s.root.Open(name) }

// Close lets go of the backup.
func (s *Source) Close() error { return s.root.Close() }
