package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrGone tells that a blob was deleted between the state of the database and
// the holding of it: take both again.
var ErrGone = errors.New("a blob was deleted meanwhile")

// Stage holds blobs by links, so that their owner may delete them while they are copied. It
// lies on their file system. One process uses it at a time; what one that was killed
// has left, the next removes.
type Stage struct {
	blobs string
	lock  *os.File
	root  *os.Root
}

// NewStage makes a stage in dir for a directory of blobs.
func NewStage(dir, blobs string) (*Stage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New("another backup of this data directory is being made")
		}
		return nil, err
	}
	held := filepath.Join(dir, "held")
	err = os.RemoveAll(held)
	if err == nil {
		err = os.Mkdir(held, 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	root, err := os.OpenRoot(held)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Stage{blobs: blobs, lock: lock, root: root}, nil
}

// HoldAll holds every blob that is there.
func (s *Stage) HoldAll(ctx context.Context) error {
	return filepath.WalkDir(s.blobs, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, or there never was one
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(s.blobs, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if rel != "." && e.Name()[0] == '.' {
				return fs.SkipDir // unfinished ones
			}
			return nil
		}
		if err := s.hold(filepath.ToSlash(rel)); !errors.Is(err, ErrGone) {
			return err
		}
		return nil
	})
}

// Hold holds those of the given keys; ErrGone where one is not there any more.
func (s *Stage) Hold(keys []string) error {
	for _, key := range keys {
		if err := s.hold(key); err != nil {
			return err
		}
	}
	return nil
}

// hold links one blob. A key's bytes never change.
func (s *Stage) hold(key string) error {
	if !fs.ValidPath(key) {
		return fmt.Errorf("blob key %.80q is no path", key)
	}
	if _, err := s.root.Lstat(key); err == nil {
		return nil
	}
	if err := s.root.MkdirAll(filepath.Dir(key), 0o700); err != nil {
		return err
	}
	from := filepath.Join(s.blobs, filepath.FromSlash(key))
	err := os.Link(from, filepath.Join(s.root.Name(), filepath.FromSlash(key)))
	switch {
	case err == nil, errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %s", ErrGone, key)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EMLINK), errors.Is(err, syscall.ENOSYS):
		return s.copy(from, key) // a file system without links
	}
	return fmt.Errorf("hold blob %s: %w", key, err)
}

func (s *Stage) copy(from, key string) (err error) {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrGone, key)
	}
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := s.root.OpenFile(key, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// Open opens a blob that is held.
func (s *Stage) Open(key string) (*os.File, error) { return s.root.Open(key) }

// Close lets go of the blobs.
func (s *Stage) Close() error {
	return errors.Join(os.RemoveAll(s.root.Name()), s.root.Close(), s.lock.Close())
}
