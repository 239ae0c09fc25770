package blob

import (
	"context"
	"io"
)

// GetRange opens n bytes of a blob from an offset on; the caller closes it. A blob
// that is shorter gives what it has. A missing one is told as by Get.
func (d *Dir) GetRange(ctx context.Context, key string, offset, n int64) (io.ReadCloser, error) {
	f, err := d.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return section{io.NewSectionReader(f.(io.ReaderAt), offset, n), f}, nil
}

// section is a part of a file that closes the whole.
type section struct {
	io.Reader
	io.Closer
}
