package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/tomblancdev/stromboli"
)

const (
	// partSize is what of a blob is in memory while it is sent, and the size from
	// which on it is sent in parts: the least that the protocol takes.
	partSize = 5 << 20
	// bucketTries bounds how often a request is sent, and bucketAnswer the wait for
	// the head of each answer.
	bucketTries  = 3
	bucketAnswer = 30 * time.Second
)

// Bucket keeps blobs in a bucket of a service that speaks the S3 protocol, under
// the same keys as Dir. What Put returned without an error is as durable as the
// service makes it. A server that dies within a large Put leaves parts, which are
// invisible, and which the next Put of the key removes.
type Bucket struct {
	client    *minio.Client
	transport *http.Transport
	name      string
	prefix    string
}

// OpenBucket makes a client of the bucket; it sends nothing yet. getenv and home
// tell where the credentials are; see Place.
func OpenBucket(p Place, getenv func(string) string, home string) (*Bucket, error) {
	transport := &http.Transport{
		Proxy:                 proxy(getenv),
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: bucketAnswer,
		IdleConnTimeout:       time.Minute,
		MaxIdleConnsPerHost:   4,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true,
	}
	client, err := minio.New(p.Host, &minio.Options{
		Creds: credentials.New(&found{getenv: getenv, home: home}), Secure: !p.Plain, Region: p.Region,
		Transport: transport, MaxRetries: bucketTries,
	})
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", p.Bucket, err)
	}
	return &Bucket{client: client, transport: transport, name: p.Bucket, prefix: p.Prefix}, nil
}

// Close closes idle connections.
func (b *Bucket) Close() error {
	b.transport.CloseIdleConnections()
	return nil
}

// Put stores what r holds under key, in place of what was there, and returns its
// size. At most 5 MiB of it are in memory. On an error the old blob is there
// still.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader) (int64, error) {
	if err := checkKey(key); err != nil {
		return 0, err
	}
	var first bytes.Buffer
	n, err := io.CopyN(&first, ctxReader{ctx, r}, partSize)
	switch {
	case errors.Is(err, io.EOF): // the ordinary one
		_, err = b.client.PutObject(ctx, b.name, b.prefix+key, &first, n, minio.PutObjectOptions{DisableMultipart: true})
		return n, classifyBucket("put", key, err)
	case err != nil:
		return 0, classifyBucket("put", key, err)
	}
	if err := b.client.RemoveIncompleteUpload(ctx, b.name, b.prefix+key); err != nil {
		return 0, classifyBucket("put", key, err)
	}
	info, err := b.client.PutObject(ctx, b.name, b.prefix+key, io.MultiReader(&first, r), -1, minio.PutObjectOptions{PartSize: partSize, NumThreads: 1})
	return info.Size, classifyBucket("put", key, err)
}

// GetRange opens n bytes of a blob from an offset on; the caller closes it. Where
// there is none the error is both stromboli.NotFound and fs.ErrNotExist.
func (b *Bucket) GetRange(ctx context.Context, key string, offset, n int64) (io.ReadCloser, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	var opts minio.GetObjectOptions
	if err := opts.SetRange(offset, offset+n-1); err != nil {
		return nil, fmt.Errorf("get blob %s: %w", key, err)
	}
	body, _, _, err := (&minio.Core{Client: b.client}).GetObject(ctx, b.name, b.prefix+key, opts)
	if err != nil {
		return nil, classifyBucket("get", key, err)
	}
	return body, nil
}

// Delete removes a blob. A missing one is success.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return classifyBucket("delete", key, b.client.RemoveObject(ctx, b.name, b.prefix+key, minio.RemoveObjectOptions{}))
}

func classifyBucket(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		if doing == "delete" {
			return nil
		}
		return stromboli.Errorf(stromboli.NotFound, "there is no blob %q", key).WithCause(fs.ErrNotExist)
	}
	return fmt.Errorf("%s blob %s in the bucket: %w", doing, key, err)
}
