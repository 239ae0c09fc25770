package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	encoding "encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
)

// newPair makes a self-signed certificate for a name and its key, as PEM.
func newPair(t *testing.T, name string, until time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	return encoding.EncodeToMemory(&encoding.Block{Type: "CERTIFICATE", Bytes: der}), encoding.EncodeToMemory(&encoding.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// A pair is taken whole or not at all, and what can't be used leaves the one
// before in use and is told of once.
func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	files := config.TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	step := 0
	write := func(path string, text []byte) {
		t.Helper()
		step++ // the modification time tells files apart
		must(t, os.WriteFile(path+".new", text, 0o600))
		must(t, os.Chtimes(path+".new", time.Time{}, time.Unix(int64(1e9+step), 0)))
		must(t, os.Rename(path+".new", path))
	}
	later := time.Now().Add(24 * time.Hour)
	cert1, key1 := newPair(t, "one", later)
	cert2, key2 := newPair(t, "two", time.Now().Add(-time.Minute))
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	if c, err := openCertificate(config.TLS{}, logger); c != nil || err != nil || c.config() != nil || c.watch(t.Context()) != nil {
		t.Errorf("without files: %v, %v", c, err)
	}
	if _, err := openCertificate(files, logger); err == nil || !strings.Contains(err.Error(), "STROMBOLI_TLS_CERT") {
		t.Errorf("missing: %v", err)
	}
	write(files.Cert, cert1)
	write(files.Key, key2)
	if _, err := openCertificate(files, logger); err == nil || !strings.Contains(err.Error(), "STROMBOLI_TLS_KEY") {
		t.Errorf("of two pairs: %v", err)
	}
	write(files.Key, key1)
	must(t, os.Chmod(files.Key, 0o644))
	if _, err := openCertificate(files, logger); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a public key file: %v", err)
	}
	must(t, os.Chmod(files.Key, 0o640))
	c, err := openCertificate(files, logger)
	must(t, err)
	in := func(want, says string) {
		t.Helper()
		log.Reset()
		c.renew(t.Context())
		c.renew(t.Context())
		got, err := c.config().GetCertificate(&tls.ClientHelloInfo{})
		must(t, err)
		if got.Leaf.DNSNames[0] != want {
			t.Errorf("%s is in use, want %s", got.Leaf.DNSNames[0], want)
		}
		if n := strings.Count(log.String(), "\n"); n > 1 || (says == "") != (n == 0) || !strings.Contains(log.String(), says) {
			t.Errorf("the log says %q, want %q", log.String(), says)
		}
	}
	in("one", "")
	write(files.Cert, cert2)
	in("one", "stays in use")
	write(files.Key, key2)
	in("two", "a new TLS certificate")
	write(files.Key, []byte("rubbish"))
	in("two", "stays in use")
	must(t, os.Remove(files.Key))
	in("two", "stays in use")
	write(files.Cert, cert1)
	write(files.Key, key1)
	in("one", "a new TLS certificate")
}
