package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
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
	cert, _, err := config.ReadFile(files.Cert, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_CERT: %w", err)
	}
	key, info, err := config.ReadFile(files.Key, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_KEY: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("STROMBOLI_TLS_KEY: everybody may read it (mode %04o): chmod o= %s", info.Mode().Perm(), files.Key)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_TLS_CERT, STROMBOLI_TLS_KEY: %w", err)
	}
	return &pair, nil
}
