package blob

import (
	"context"
	"errors"
	"io"
	"io/fs"
)

// keysAtOnce is how many names of a directory are in memory.
const keysAtOnce = 1000

// Keys calls fn for each key below a prefix, in no order, and ends with fn's
// first error. Keys that come or go meanwhile may be told or not. That there are
// none is success.
func (d *Dir) Keys(ctx context.Context, prefix string, fn func(key string) error) error {
	if err := checkKey(prefix); err != nil {
		return err
	}
	return classify("list", prefix, d.keys(ctx, prefix, fn))
}

func (d *Dir) keys(ctx context.Context, dir string, fn func(key string) error) error {
	f, err := d.root.Open(dir)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		entries, err := f.ReadDir(keysAtOnce)
		for _, e := range entries {
			if err := d.entry(ctx, dir+"/"+e.Name(), e, fn); err != nil {
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

func (d *Dir) entry(ctx context.Context, key string, e fs.DirEntry, fn func(key string) error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case e.IsDir():
		return d.keys(ctx, key, fn)
	case e.Type().IsRegular():
		return fn(key)
	}
	return nil
}
