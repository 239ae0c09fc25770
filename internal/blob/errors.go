package blob

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// isMissing: also a key below what is a blob itself.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

func classify(doing, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return stromboli.Errorf(stromboli.StorageFull, "the disk that holds the server's data is full").
			WithCause(fmt.Errorf("%s blob %s: %w", doing, key, err))
	case isMissing(err) && doing == "get":
		return stromboli.Errorf(stromboli.NotFound, "there is no blob %q", key).
			WithCause(fs.ErrNotExist)
	}
	return fmt.Errorf("%s blob %s: %w", doing, key, err)
}
