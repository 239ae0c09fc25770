package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/idmap"
)

// maxDepth bounds how deep we follow an agent's directories: each level costs a
// descriptor, and a step on the way to everything below it.
const maxDepth = 256

// eachEntry calls fn for each entry of a directory that an agent may have
// filled, a few at a time. What took the directory's place, such as a fifo, is
// an error and holds nobody.
func eachEntry(root *os.Root, dir string, fn func(fs.DirEntry) error) error {
	f, err := root.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		entries, err := f.ReadDir(256)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// removeTree removes a directory that an agent wrote into, however deep it
// nested directories there and whatever rights it took from them. It refuses
// one with anything mounted in it: what is mounted may be somebody's workspace.
func removeTree(dir string) error {
	if mounts, err := idmap.Below(dir); err != nil || len(mounts) > 0 {
		return errors.Join(err, mounted(mounts))
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		openUp(root, ".")
		_ = root.Close()
	}
	return os.RemoveAll(dir)
}

// reclaimTime bounds the removal of what root hooks have left.
const reclaimTime = 5 * time.Minute

// removeTree removes a directory of a sandbox's or session's, whoever owns what is
// in it.
func (m *Manager) removeTree(ctx context.Context, dir string) error {
	err := removeTree(dir)
	if m.cfg.Reclaim == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, reclaimTime)
	defer cancel()
	return m.cfg.Reclaim(ctx, dir)
}

func mounted(points []string) error {
	if len(points) == 0 {
		return nil
	}
	return fmt.Errorf("%s is not removed: it is a mount point; unmount it first (umount -l)", points[0])
}

// openUp readies a tree for RemoveAll, which needs rights and keeps a
// descriptor for each level: directories are opened to their owner, and deep
// ones moved to the top.
func openUp(root *os.Root, top string) {
	if info, err := root.Lstat(top); err != nil || !info.IsDir() {
		return
	}
	if top != "." {
		_ = root.Chmod(top, 0o700)
	}
	p := pruner{root: root, top: top}
	for todo := []string{top}; len(todo) > 0; todo = p.moved {
		p.moved = nil
		for _, dir := range todo {
			p.walk(dir, 0)
		}
	}
}

type pruner struct {
	root  *os.Root
	top   string
	moved []string // what has yet to be walked
}

// movedName begins the names of directories that were moved.
const movedName = ".stromboli-deep-"

// walk opens the directories below dir. What fails here fails again, and with a
// better message, when it is removed.
func (p *pruner) walk(dir string, depth int) {
	_ = eachEntry(p.root, dir, func(e fs.DirEntry) error {
		name := path.Join(dir, e.Name())
		if !e.IsDir() || slices.Contains(p.moved, name) {
			return nil
		}
		_ = p.root.Chmod(name, 0o700)
		if depth < maxDepth {
			p.walk(name, depth+1)
			return nil
		}
		to := path.Join(p.top, movedName+stromboli.NewSandboxID())
		if p.root.Rename(name, to) == nil {
			p.moved = append(p.moved, to)
		}
		return nil
	})
}
