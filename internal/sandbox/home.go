package sandbox

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// MaxTranscript bounds a transcript in bytes, so that an agent can't fill the
// server's disk by way of the blob store.
const MaxTranscript = 512 << 20

// projectsDir is where the CLI keeps transcripts, one directory per working
// directory and one file per conversation.
const projectsDir = ".claude/projects"

// Home is a session's home directory on the host's disk. The agent owns what
// is in it, so all access goes through an os.Root: no path and no symlink that
// the agent planted leads out of it. It is used only while no sandbox of the
// session runs, the server holding the session.
type Home struct {
	dir      string
	uid, gid int // the agent's, on the host; -1 where files belong to the server's own user
}

// ReadTranscript opens the transcript of the CLI's conversation id. The error
// is fs.ErrNotExist when the CLI has saved none.
func (h Home) ReadTranscript(id string) (io.ReadCloser, error) {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the session's home: %w", err)
	}
	defer func() { _ = root.Close() }()
	name, err := findTranscript(root, id)
	if err != nil {
		return nil, err
	}
	return openRegular(root, name)
}

// findTranscript looks for the file by its name in every project directory:
// the directory's name can't be computed from the working directory.
func findTranscript(root *os.Root, id string) (string, error) {
	dirs, err := fs.ReadDir(root.FS(), projectsDir)
	if err != nil {
		return "", fmt.Errorf("reading the transcripts: %w", err)
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		name := path.Join(projectsDir, d.Name(), id+".jsonl")
		if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() {
			return name, nil
		}
	}
	return "", fmt.Errorf("transcript of %s: %w", id, fs.ErrNotExist)
}

// openRegular opens a regular file of bounded size. O_NONBLOCK keeps a fifo
// that takes the file's place from holding the server.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the transcript: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		switch {
		case !info.Mode().IsRegular():
			err = errors.New("not a regular file")
		case info.Size() > MaxTranscript:
			err = fmt.Errorf("%d bytes, more than %d", info.Size(), MaxTranscript)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("transcript %s: %w", name, err)
	}
	return f, nil
}

// WriteTranscript puts a saved transcript into the home, so that the CLI can
// resume it. A file that is there and equal is left alone. The file is for the
// agent; the durable copy is the one that src came from.
func (h Home) WriteTranscript(id string, src io.Reader) error {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return fmt.Errorf("opening the session's home: %w", err)
	}
	defer func() { _ = root.Close() }()

	const temp = ".claude/.stromboli-transcript"
	if err := h.mkdirAll(root, projectsDir+"/stromboli"); err != nil {
		return err
	}
	_ = root.Remove(temp)
	want := sha256.New()
	if err := h.create(root, temp, io.TeeReader(src, want)); err != nil {
		return err
	}
	name, err := findTranscript(root, id)
	if err != nil {
		name = path.Join(projectsDir, "stromboli", id+".jsonl")
	} else if have, err := digest(root, name); err == nil && bytes.Equal(have, want.Sum(nil)) {
		return root.Remove(temp)
	}
	if err := root.Rename(temp, name); err != nil {
		return fmt.Errorf("putting the transcript into the session's home: %w", err)
	}
	return nil
}

func digest(root *os.Root, name string) ([]byte, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

func (h Home) create(root *os.Root, name string, src io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("writing the transcript: %w", err)
	}
	_, err = io.Copy(f, io.LimitReader(src, MaxTranscript))
	if h.uid >= 0 {
		err = errors.Join(err, f.Chown(h.uid, h.gid))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the transcript: %w", err)
	}
	return nil
}

func (h Home) mkdirAll(root *os.Root, dir string) error {
	made := ""
	for _, part := range bytes.Split([]byte(dir), []byte("/")) {
		made = path.Join(made, string(part))
		err := root.Mkdir(made, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil && h.uid >= 0 {
			err = root.Lchown(made, h.uid, h.gid)
		}
		if err != nil {
			return fmt.Errorf("making %s in the session's home: %w", made, err)
		}
	}
	return nil
}

// sessionDir makes one of a session's own directories, owned by the agent.
// When the agent's uid has changed since the last run the tree is given to the
// new one, entry by entry and without following links.
func sessionDir(dir string, uid, gid int) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("making the session's directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the session's directory: %w", err)
	}
	if uid < 0 {
		return nil
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("the session's directory: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid && int(st.Gid) == gid {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the session's directory: %w", err)
	}
	defer func() { _ = root.Close() }()
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return root.Lchown(name, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("giving %s to uid %d: %w", dir, uid, err)
	}
	// The top last: until it has changed hands the next try walks again.
	return root.Lchown(".", uid, gid)
}

// removeTree removes a directory that an agent wrote into. Directories that it
// made unreadable are opened up first where they belong to our own user.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	root, oerr := os.OpenRoot(dir)
	if oerr != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	openUp(root, ".", 0)
	return os.RemoveAll(dir)
}

func openUp(root *os.Root, dir string, depth int) {
	if depth > 1000 {
		return
	}
	info, err := root.Lstat(dir)
	if err != nil || !info.IsDir() {
		return
	}
	_ = root.Chmod(dir, 0o700)
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			openUp(root, path.Join(dir, e.Name()), depth+1)
		}
	}
}
