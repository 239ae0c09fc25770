package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

type fakeImage struct {
	engine.Image
	files map[string]fakeFile // by absolute path
}

type fakeFile struct {
	mode fs.FileMode
	data []byte
	link string // a symlink's target
}

func readTar(r io.Reader) (map[string]fakeFile, error) {
	files := map[string]fakeFile{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, err
		}
		files[path.Join("/", h.Name)] = fakeFile{mode: h.FileInfo().Mode(), data: data, link: h.Linkname}
	}
}

// resolve follows symlinks in every element but, as asked, the last.
func (i *fakeImage) resolve(name string, last bool) string {
	done := "/"
	parts := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for n, part := range parts {
		next := path.Join(done, part)
		if f, ok := i.files[next]; ok && f.link != "" && (last || n < len(parts)-1) {
			next = path.Join(done, f.link)
			if path.IsAbs(f.link) {
				next = f.link
			}
		}
		done = next
	}
	return done
}

// image finds an image by its name or its id. The lock is held.
func (f *Fake) image(ref string) (*fakeImage, bool) {
	if i, ok := f.images[ref]; ok {
		return i, true
	}
	for _, i := range f.images {
		if i.ID == ref {
			return i, true
		}
	}
	return nil, false
}

// ImageExists implements engine.Images.
func (f *Fake) ImageExists(ctx context.Context, ref string) (bool, error) {
	if err := f.enter(ctx, "ImageExists"); err != nil {
		return false, err
	}
	defer f.mu.Unlock()
	_, ok := f.image(ref)
	return ok, nil
}

// ImageInspect implements engine.Images.
func (f *Fake) ImageInspect(ctx context.Context, ref string) (engine.Image, error) {
	if err := f.enter(ctx, "ImageInspect"); err != nil {
		return engine.Image{}, err
	}
	defer f.mu.Unlock()
	i, ok := f.image(ref)
	if !ok {
		return engine.Image{}, fakeError("inspect image "+ref, engine.ErrImageMissing)
	}
	return i.Image, nil
}

// ImageList implements engine.Images.
func (f *Fake) ImageList(ctx context.Context) ([]engine.Image, error) {
	if err := f.enter(ctx, "ImageList"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	var list []engine.Image
	for _, name := range slices.Sorted(maps.Keys(f.images)) {
		list = append(list, f.images[name].Image)
	}
	return list, nil
}

// ImageLoad implements engine.Images.
func (f *Fake) ImageLoad(ctx context.Context, archive io.Reader) ([]string, error) {
	if err := f.enter(ctx, "ImageLoad"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	refs, layer, config, err := openArchive(archive)
	if err != nil {
		return nil, &engine.Error{Op: "load image", Message: fmt.Sprintf("not an image archive: %v", err), Kind: engine.ErrInvalid}
	}
	for _, ref := range refs {
		if err := f.addImage(ref, layer, config); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// openArchive takes an image with one layer out of an archive.
func openArchive(r io.Reader) (refs []string, layer []byte, config archiveConfig, err error) {
	parts, err := readTar(r)
	var manifests []archiveManifest
	if err == nil {
		err = json.Unmarshal(parts["/manifest.json"].data, &manifests)
	}
	if err == nil && (len(manifests) != 1 || len(manifests[0].Layers) != 1) {
		err = errors.New("not one image with one layer")
	}
	if err != nil {
		return nil, nil, config, err
	}
	m := manifests[0]
	err = json.Unmarshal(parts["/"+m.Config].data, &config)
	return m.RepoTags, parts["/"+m.Layers[0]].data, config, err
}

// ImageImport implements engine.Images.
func (f *Fake) ImageImport(ctx context.Context, rootfs io.Reader, ref string) (string, error) {
	if err := f.enter(ctx, "ImageImport"); err != nil {
		return "", err
	}
	defer f.mu.Unlock()
	data, err := io.ReadAll(rootfs)
	if err != nil {
		return "", err
	}
	if err := f.addImage(ref, data, archiveConfig{OS: "linux"}); err != nil {
		return "", err
	}
	return f.images[ref].ID, nil
}

func (f *Fake) addImage(ref string, layer []byte, config archiveConfig) error {
	files, err := readTar(bytes.NewReader(layer))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(append([]byte(ref), layer...))
	id := hex.EncodeToString(sum[:])
	f.images[ref] = &fakeImage{files: files, Image: engine.Image{
		ID: id, Digest: "sha256:" + id, Names: []string{ref}, Labels: config.Config.Labels, Created: time.Now(),
		Bytes: int64(len(layer)), Env: config.Config.Env, Entrypoint: config.Config.Entrypoint, Command: config.Config.Cmd,
		User: config.Config.User, Workdir: config.Config.WorkingDir, OS: config.OS, Architecture: config.Architecture,
	}}
	return nil
}

// ImageRemove implements engine.Images.
func (f *Fake) ImageRemove(ctx context.Context, ref string) error {
	if err := f.enter(ctx, "ImageRemove"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.Image == ref || f.images[ref] != nil && c.Image == f.images[ref].ID {
			return fakeError("remove image "+ref, engine.ErrConflict)
		}
	}
	delete(f.images, ref)
	return nil
}

// StatPath implements engine.Containers. It knows the image only, not mounts.
func (f *Fake) StatPath(ctx context.Context, id, name string) (engine.PathStat, error) {
	if err := f.enter(ctx, "StatPath"); err != nil {
		return engine.PathStat{}, err
	}
	defer f.mu.Unlock()
	c, err := f.find("stat "+name+" in", id)
	if err != nil {
		return engine.PathStat{}, err
	}
	file, ok := c.image.files[c.image.resolve(name, false)]
	if !ok {
		return engine.PathStat{}, fakeError("stat "+name+" in container "+id, engine.ErrNotFound)
	}
	st := engine.PathStat{Name: path.Base(name), Size: int64(len(file.data)), Mode: file.mode}
	if file.link != "" {
		st.LinkTarget = c.image.resolve(name, true)
	}
	return st, nil
}

// ReadFile implements engine.Containers, as StatPath does.
func (f *Fake) ReadFile(ctx context.Context, id, name string, limit int64) ([]byte, error) {
	if err := f.enter(ctx, "ReadFile"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	c, err := f.find("read "+name+" in", id)
	if err != nil {
		return nil, err
	}
	op := "read " + name + " in container " + id
	file, ok := c.image.files[c.image.resolve(name, true)]
	switch {
	case !ok:
		return nil, fakeError(op, engine.ErrNotFound)
	case !file.mode.IsRegular():
		return nil, fakeError(op, engine.ErrInvalid)
	case int64(len(file.data)) > limit:
		return nil, fakeError(op, engine.ErrTooLarge)
	}
	return slices.Clone(file.data), nil
}

// fakeReady does what the probe does: it leaves a file in a mounted directory.
func fakeReady(spec engine.ContainerSpec, dir string) {
	for _, m := range spec.Mounts {
		if dir != "" && m.Target == dir {
			_ = os.WriteFile(filepath.Join(m.Source, "ready"), nil, 0o600)
		}
	}
}
