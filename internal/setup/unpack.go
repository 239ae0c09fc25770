package setup

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
)

const (
	binaryLimit    = 2 << 30
	archiveLimit   = 4 << 30
	archiveMembers = 100_000
)

// unpackOne writes the one regular file called member of a package to target
// and returns its size. Nothing else of the archive reaches the disk, so its
// other names, links and devices can do no harm; its length, once unpacked,
// and its number of members are bounded.
func unpackOne(tgz, member, target string, tell func(done, total int64)) (int64, error) {
	f, err := os.Open(tgz)
	if err != nil {
		return 0, fmt.Errorf("open the package: %w", err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return 0, fmt.Errorf("unpack the package: %w", err)
	}
	tr := tar.NewReader(io.LimitReader(zr, archiveLimit))
	for range archiveMembers {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("unpack the package: %w", err)
		}
		if path.Clean(h.Name) != member {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return 0, fmt.Errorf("unpack the package: %s is not a regular file", member)
		}
		if h.Size <= 0 || h.Size > binaryLimit {
			return 0, fmt.Errorf("unpack the package: %s has %d bytes", member, h.Size)
		}
		r := &counter{r: tr, every: progressEvery, tell: func(n int64) { tell(n, h.Size) }}
		n, err := writeFile(target, 0o755, r, binaryLimit)
		if err == nil && n != h.Size {
			err = fmt.Errorf("unpack the package: %s is cut", member)
		}
		return n, err
	}
	return 0, fmt.Errorf("unpack the package: it has no %s", member)
}
