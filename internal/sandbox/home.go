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
	"strings"
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

// HasTranscript reports whether the CLI has saved a transcript of the
// conversation, readable or not.
func (h Home) HasTranscript(id string) bool {
	f, err := h.ReadTranscript(id)
	if err == nil {
		_ = f.Close()
	}
	return !errors.Is(err, fs.ErrNotExist)
}

// maxProjects bounds what is read of the directories that the agent may make.
const maxProjects = 4096

// findTranscript looks for the file by its name in every project directory:
// the directory's name can't be computed from the working directory.
func findTranscript(root *os.Root, id string) (string, error) {
	names, err := sameName(root, id)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() {
			return name, nil
		}
	}
	return "", fmt.Errorf("transcript of %s: %w", id, fs.ErrNotExist)
}

// sameName lists what has a transcript's name, whatever it is.
func sameName(root *os.Root, id string) ([]string, error) {
	dir, err := root.OpenFile(projectsDir, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the transcripts: %w", err)
	}
	defer func() { _ = dir.Close() }()
	dirs, err := dir.ReadDir(maxProjects)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the transcripts: %w", err)
	}
	var names []string
	for _, d := range dirs {
		name := path.Join(projectsDir, d.Name(), id+".jsonl")
		if _, err := root.Lstat(name); err == nil && d.IsDir() {
			names = append(names, name)
		}
	}
	return names, nil
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

// Repair makes the place of transcripts usable again, whatever the agent made
// of it: a link, a fifo or a directory that has a transcript's name, or stands
// in the way to it, is removed. What is lost by that was no transcript.
func (h Home) Repair(id string) error {
	root, err := os.OpenRoot(h.dir)
	if err != nil {
		return fmt.Errorf("opening the session's home: %w", err)
	}
	defer func() { _ = root.Close() }()
	return h.repair(root, id)
}

func (h Home) repair(root *os.Root, id string) error {
	if err := h.mkdirAll(root, projectsDir+"/stromboli"); err != nil {
		return err
	}
	names, err := sameName(root, id)
	if err != nil {
		return err
	}
	for _, name := range names {
		if info, err := root.Lstat(name); err == nil && info.Mode().IsRegular() {
			continue
		}
		if err := clearAway(root, name); err != nil {
			return err
		}
	}
	return nil
}

// clearAway removes a thing of the agent's, or the link itself.
func clearAway(root *os.Root, name string) error {
	openUp(root, name)
	if err := root.RemoveAll(name); err != nil {
		return fmt.Errorf("clearing %s away in the session's home: %w", name, err)
	}
	return nil
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
	if err := h.repair(root, id); err != nil {
		return err
	}
	if err := clearAway(root, temp); err != nil {
		return err
	}
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

// mkdirAll makes directories. What stands in the place of one is removed, and
// one that the agent closed to its owner is opened.
func (h Home) mkdirAll(root *os.Root, dir string) error {
	made := ""
	for _, part := range strings.Split(dir, "/") {
		made = path.Join(made, part)
		if err := h.mkdir(root, made); err != nil {
			return fmt.Errorf("making %s in the session's home: %w", made, err)
		}
	}
	return nil
}

func (h Home) mkdir(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	switch {
	case err == nil && info.IsDir():
		if info.Mode().Perm()&0o700 == 0o700 {
			return nil
		}
		return root.Chmod(name, 0o700)
	case err == nil:
		if err := root.Remove(name); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := root.Mkdir(name, 0o700); err != nil || h.uid < 0 {
		return err
	}
	return root.Lchown(name, h.uid, h.gid)
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
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("the session's directory: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o700 != 0o700 { // the agent closed it to itself
		if err := os.Chmod(dir, mode|0o700); err != nil {
			return fmt.Errorf("the session's directory: %w", err)
		}
	}
	if uid < 0 {
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) == uid && int(st.Gid) == gid {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("the session's directory: %w", err)
	}
	defer func() { _ = root.Close() }()
	if err := giveAway(root, ".", uid, gid, 0); err != nil {
		return fmt.Errorf("giving %s to uid %d: %w", dir, uid, err)
	}
	// The top last: until it has changed hands the next try walks again.
	return root.Lchown(".", uid, gid)
}

// giveAway changes the owner of what is in a directory.
func giveAway(root *os.Root, dir string, uid, gid, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	return eachEntry(root, dir, func(e fs.DirEntry) error {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			if err := giveAway(root, name, uid, gid, depth+1); err != nil {
				return err
			}
		}
		return root.Lchown(name, uid, gid)
	})
}
