package blob_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKeysBelow(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	want := []string{"a/direct", "a/c/d/e.jsonl"}
	for _, key := range append(want, "a/b/first", "ab/other") {
		put(t, d, key, "x")
	}
	want = append(want, "a/b/first")
	for i := range 1100 { // more than are read at once
		key := fmt.Sprintf("a/b/%d.jsonl", i)
		want = append(want, key)
		if err := os.WriteFile(filepath.Join(dir, key), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	list := func(key string) error { got = append(got, key); return nil }
	if err := d.Keys(t.Context(), "a", list); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d keys of %d", len(got), len(want))
	}
	if err := d.Keys(t.Context(), "none", list); err != nil {
		t.Error(err)
	}
	enough := errors.New("enough")
	if err := d.Keys(t.Context(), "a", func(string) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := d.Keys(ended, "a", list); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := d.Keys(t.Context(), "../a", list); err == nil || !strings.Contains(err.Error(), "key") {
		t.Error(err)
	}
}
