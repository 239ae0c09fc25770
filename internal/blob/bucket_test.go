package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/blob/blobtest"
)

func bucket(t *testing.T, s *blobtest.Server, env func(string) string, home string) *blob.Bucket {
	t.Helper()
	place, err := blob.ParsePlace(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blob.OpenBucket(place, env, home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func TestBucket(t *testing.T) {
	s := blobtest.Start(t)
	b := bucket(t, s, s.Getenv, "")
	ctx := t.Context()
	get := func(key string, offset, n int64) ([]byte, error) {
		src, err := b.GetRange(ctx, key, offset, n)
		if err != nil {
			return nil, err
		}
		defer func() { _ = src.Close() }()
		return io.ReadAll(src)
	}
	if _, err := get("events/a", 0, 5); !errors.Is(err, stromboli.NotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing blob: %v", err)
	}
	if n, err := b.Put(ctx, "events/a", strings.NewReader("hello world")); n != 11 || err != nil {
		t.Fatalf("put %d bytes, %v", n, err)
	}
	if got, err := get("events/a", 6, 5); string(got) != "world" || err != nil {
		t.Errorf("a part is %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "some", "prefix", "events", "a")); err != nil {
		t.Errorf("the prefix is not used: %v", err)
	}
	large := bytes.Repeat([]byte("0123456789"), 1_200_000) // three parts
	if n, err := b.Put(ctx, "events/a", bytes.NewReader(large)); n != int64(len(large)) || err != nil {
		t.Fatalf("put %d bytes, %v", n, err)
	}
	if got, err := get("events/a", 11_999_990, 10); string(got) != "0123456789" || err != nil {
		t.Errorf("the end is %q, %v", got, err)
	}
	// A source that fails changes nothing, however much was sent.
	for _, sent := range [][]byte{large[:10], large[:11_000_000]} {
		bad := io.MultiReader(bytes.NewReader(sent), iotest.ErrReader(errors.New("the source failed")))
		if _, err := b.Put(ctx, "events/a", bad); err == nil {
			t.Error("a source that failed was stored")
		}
	}
	if got, err := get("events/a", 0, 10); string(got) != "0123456789" || err != nil {
		t.Errorf("after failures: %q, %v", got, err)
	}
	for range 2 {
		if err := b.Delete(ctx, "events/a"); err != nil {
			t.Error(err)
		}
	}
	if _, err := get("events/a", 0, 5); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("a deleted blob: %v", err)
	}
	if _, err := b.Put(ctx, "../x", strings.NewReader("")); !errors.Is(err, stromboli.Invalid) {
		t.Errorf("a key that leads out: %v", err)
	}

	s.Stop()
	if _, err := b.Put(ctx, "events/b", strings.NewReader("x")); err == nil || errors.Is(err, stromboli.NotFound) {
		t.Errorf("put where nobody answers: %v", err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if _, err := b.Put(ended, "events/b", strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("put for nobody: %v", err)
	}
}

func TestBucketCredentials(t *testing.T) {
	s := blobtest.Start(t)
	home := t.TempDir()
	none := func(string) string { return "" }
	_, err := bucket(t, s, none, home).Put(t.Context(), "k", strings.NewReader("x"))
	if err == nil || !strings.Contains(err.Error(), "no credentials") {
		t.Errorf("without credentials: %v", err)
	}
	wrong := func(name string) string {
		return map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}[name]
	}
	if _, err := bucket(t, s, wrong, home).Put(t.Context(), "k", strings.NewReader("x")); err == nil {
		t.Error("wrong credentials were taken")
	}
	file := "[other]\naws_access_key_id = " + s.Getenv("AWS_ACCESS_KEY_ID") + "\naws_secret_access_key = " + s.Getenv("AWS_SECRET_ACCESS_KEY") + "\n"
	if err := os.MkdirAll(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := bucket(t, s, func(name string) string { return map[string]string{"AWS_PROFILE": "other"}[name] }, home)
	if _, err := b.Put(t.Context(), "k", strings.NewReader("x")); err == nil {
		t.Error("put without the file")
	}
	if err := os.WriteFile(filepath.Join(home, ".aws", "credentials"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Put(t.Context(), "k", strings.NewReader("x")); err != nil { // a file that came later is read
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	for in, want := range map[string]string{
		"s3://b":                                      "s3://s3.us-east-1.amazonaws.com/b/",
		"s3://b/p/q/?region=eu-west-3":                "s3://s3.eu-west-3.amazonaws.com/b/p/q/",
		"s3://b?endpoint=minio.example:9000":          "s3://minio.example:9000/b/",
		"s3://b?endpoint=http://127.0.0.1:1&region=x": "s3://127.0.0.1:1/b/",
		"https://b":                                   "",
		"s3://":                                       "",
		"s3://key:secret@b":                           "",
		"s3://b/../c":                                 "",
		"s3://b?endpoint=ftp://x":                     "",
		"s3://b?endpoint=https://x/path":              "",
		"s3://b?regoin=x":                             "",
		"s3://b?region=a&region=b":                    "",
	} {
		p, err := blob.ParsePlace(in)
		if (err != nil) != (want == "") || (err == nil && p.String() != want) {
			t.Errorf("%s: %s, %v", in, p, err)
		}
	}
	if p, err := blob.ParsePlace("s3://b?endpoint=http://h"); err != nil || !p.Plain {
		t.Errorf("http:// is TLS: %+v, %v", p, err)
	}
	if p, err := blob.ParsePlace("s3://b?endpoint=h"); err != nil || p.Plain {
		t.Errorf("no scheme is not TLS: %+v, %v", p, err)
	}
}
