package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
)

// maxPEM bounds the files of certificate and key, in bytes.
const maxPEM = 1 << 20

// certificate is the server's, read from its two files. It is safe for
// concurrent use; watch alone changes it.
type certificate struct {
	files   config.TLS
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	marks [2]fileMark // of what was last looked at
	fault string      // that the log has been told of
}

// openCertificate reads the certificate; nil where there is none. It is an error
// if the server can't begin with it.
func openCertificate(files config.TLS, log *slog.Logger) (*certificate, error) {
	if files.Cert == "" {
		return nil, nil //nolint:nilnil // no TLS
	}
	c := &certificate{files: files, log: log}
	c.marks = c.look()
	pair, err := readPair(files)
	if err != nil {
		return nil, err
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		log.Warn("the TLS certificate has expired", "file", files.Cert, "at", pair.Leaf.NotAfter)
	}
	c.current.Store(pair)
	return c, nil
}

// config is what connections are served with.
func (c *certificate) config() *tls.Config {
	if c == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}

func (c *certificate) look() [2]fileMark {
	return [2]fileMark{markOf(c.files.Cert), markOf(c.files.Key)}
}

// watch takes a new pair when the files have changed, until ctx ends. While they
// don't fit together, as between the writing of the one and the other, the pair
// before stays in use.
func (c *certificate) watch(ctx context.Context) error {
	if c == nil {
		return nil
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.renew(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *certificate) renew(ctx context.Context) {
	marks := c.look()
	if marks == c.marks {
		return
	}
	c.marks = marks
	pair, err := readPair(c.files)
	switch {
	case err == nil:
		c.current.Store(pair)
		c.fault = ""
		c.log.InfoContext(ctx, "a new TLS certificate is in use", "file", c.files.Cert, "until", pair.Leaf.NotAfter)
	case c.fault != err.Error():
		c.fault = err.Error()
		c.log.ErrorContext(ctx, "the TLS certificate has changed and can't be used; the one before stays in use", "error", err)
	}
}

// readPair reads certificate and key, which must fit together.
func readPair(files config.TLS) (*tls.Certificate, error) {
	cert, _, err := readPEM(files.Cert)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_CERT: %w", err)
	}
	key, mode, err := readPEM(files.Key)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_KEY: %w", err)
	}
	if mode.Perm()&0o007 != 0 {
		return nil, fmt.Errorf("STROMBOLI_TLS_KEY: everybody may read it (mode %04o): chmod o= %s", mode.Perm(), files.Key)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_CERT, STROMBOLI_TLS_KEY: %w", err)
	}
	return &pair, nil
}

func readPEM(path string) ([]byte, os.FileMode, error) {
	// A fifo must not keep the server waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(b) > maxPEM {
		err = errors.New("it is larger than 1 MiB")
	}
	return b, info.Mode(), err
}
