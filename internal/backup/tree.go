package backup

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// AddTree packs a directory, which may be written meanwhile: what goes while it is
// looked at is left out, and a file that shrinks is filled with zeros. Owners, modes, times and links are kept;
// sockets, pipes and devices aren't. A name that skip takes, below dir, is left out with all below it. left is told of
// what can't be read, and of files that are far larger than their disk space: whoever may write there must not keep
// others from their backup.
func (w *Writer) AddTree(ctx context.Context, name, dir string, skip func(string) bool, left func(name, why string)) error {
	r, p := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := pack(ctx, p, dir, skip, left)
		p.CloseWithError(err)
		done <- err
	}()
	err := w.Add(ctx, name, r)
	_ = r.CloseWithError(err)
	return errors.Join(err, <-done)
}

func pack(ctx context.Context, w io.Writer, dir string, skip func(string) bool, left func(name, why string)) error {
	out := tar.NewWriter(w)
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return out.Close()
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case errors.Is(err, fs.ErrPermission):
			left(name, "it can't be read")
			return fs.SkipDir
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case name == ".":
			return nil
		case skip(name) && e.IsDir():
			return fs.SkipDir
		case skip(name):
			return nil
		}
		switch err := packOne(ctx, out, root, name); {
		case err == nil, errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, errHoles), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ELOOP):
			left(name, err.Error())
		default:
			return fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
		}
		return nil
	})
	return errors.Join(err, out.Close())
}

func packOne(ctx context.Context, out *tar.Writer, root *os.Root, name string) error {
	fi, err := root.Lstat(name)
	if err != nil {
		return err
	}
	link := ""
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return nil
	}
	var in *os.File
	if fi.Mode().IsRegular() {
		// It may have become a pipe or a link since.
		if in, err = root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0); err != nil {
			return err
		}
		defer func() { _ = in.Close() }()
		if fi, err = in.Stat(); err != nil || !fi.Mode().IsRegular() {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Size() > holesFrom && fi.Size()/holesRatio > st.Blocks*512 {
			return errHoles
		}
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = name, tar.FormatPAX, "", ""
	if fi.IsDir() {
		h.Name += "/"
	}
	if err := out.WriteHeader(h); err != nil || in == nil {
		return err
	}
	n, err := io.CopyN(out, cancellable{ctx, in}, h.Size)
	if errors.Is(err, io.EOF) { // it has shrunk
		_, err = io.CopyN(out, zeros{}, h.Size-n)
	}
	return err
}

// A file of more than holesFrom bytes whose size is holesRatio times the disk
// space that it takes is left out: a backup would write the holes.
const (
	holesFrom  = 64 << 20
	holesRatio = 16
)

var errHoles = errors.New("it is far larger than the disk space that it takes")

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Unpack makes the files of a packed directory below root. Owners are set where
// this process may.
func (s *Source) Unpack(ctx context.Context, name string, root *os.Root) error {
	f, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	in := tar.NewReader(cancellable{ctx, f})
	var dirs []*tar.Header // closed ones can't be filled: their modes come last
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
		if err := unpackOne(root, h, in); err != nil {
			return fmt.Errorf("%s: %q: %w", name, h.Name, err)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		h := dirs[i]
		err := root.Chmod(path.Clean(h.Name), h.FileInfo().Mode().Perm()|h.FileInfo().Mode()&(fs.ModeSetgid|fs.ModeSticky))
		if err == nil {
			err = root.Chtimes(path.Clean(h.Name), h.ModTime, h.ModTime)
		}
		if err != nil {
			return fmt.Errorf("%s: %q: %w", name, h.Name, err)
		}
	}
	return nil
}

func unpackOne(root *os.Root, h *tar.Header, in io.Reader) (err error) {
	name := path.Clean(strings.TrimSuffix(h.Name, "/"))
	switch h.Typeflag {
	case tar.TypeDir:
		err = root.Mkdir(name, 0o700)
	case tar.TypeSymlink:
		err = root.Symlink(h.Linkname, name)
	case tar.TypeReg:
		err = unpackFile(root, name, h, in)
	default:
		return fmt.Errorf("it is of the type %q", h.Typeflag)
	}
	if err == nil && os.Geteuid() == 0 {
		err = root.Lchown(name, h.Uid, h.Gid)
	}
	if err == nil && h.Typeflag == tar.TypeReg { // after the owner: that takes set-id bits away
		if err = root.Chmod(name, h.FileInfo().Mode().Perm()); err == nil {
			err = root.Chtimes(name, h.ModTime, h.ModTime)
		}
	}
	return err
}

func unpackFile(root *os.Root, name string, h *tar.Header, in io.Reader) (err error) {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.CopyN(f, in, h.Size); err != nil {
		return err
	}
	return f.Sync()
}
