package main

import (
	"crypto/tls"
	"crypto/x509"
	encoding "encoding/pem"
	"fmt"
	"strings"

	"github.com/tomblancdev/stromboli/internal/config"
)

// reach is where a server is, what it knows us by, and we it.
type reach struct {
	url, token string
	tls        *tls.Config // nil: by the system's certificates
}

// trust adds a file of certificates to the system's; empty: none.
func trust(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // the system's alone
	}
	pem, _, err := config.ReadFile(file, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("STROMBOLI_CA_FILE: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("STROMBOLI_CA_FILE: %s holds no certificate", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// local lets a server that has our own configuration be reached by its
// address: what it must show is the certificate of the configuration.
func (at *reach) local(cfg *config.Config) error {
	if cfg.TLS.Cert == "" || !strings.HasPrefix(at.url, "https://") {
		return nil
	}
	pem, _, err := config.ReadFile(cfg.TLS.Cert, maxPEM)
	if err != nil {
		return fmt.Errorf("STROMBOLI_TLS_CERT: %w", err)
	}
	pool := x509.NewCertPool()
	block, _ := encoding.Decode(pem)
	if block == nil || !pool.AppendCertsFromPEM(encoding.EncodeToMemory(block)) {
		return fmt.Errorf("STROMBOLI_TLS_CERT: %s holds no certificate", cfg.TLS.Cert)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("STROMBOLI_TLS_CERT: %w", err)
	}
	at.tls = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: nameOf(leaf)}
	return nil
}

// nameOf is a name that a certificate is for.
func nameOf(leaf *x509.Certificate) string {
	switch {
	case len(leaf.DNSNames) > 0:
		return strings.Replace(leaf.DNSNames[0], "*", "any", 1)
	case len(leaf.IPAddresses) > 0:
		return leaf.IPAddresses[0].String()
	}
	return ""
}
