package sandbox

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// Binding is a secret that egress shows to a host; see Reach.
type Binding struct {
	To     string // name:port
	Header string
	Value  string
	// Fault, if set, says why there is no value; the host is not reached then.
	Fault string
}

// String implements fmt.Stringer without the value.
func (b Binding) String() string { return "binding of " + b.To }

// GoString implements fmt.GoStringer without the value.
func (b Binding) GoString() string { return b.String() }

// Trust is where a sandbox finds the certificates that its tools are to trust;
// empty paths where nothing is bound.
type Trust struct {
	// Bundle holds the image's own authorities and the sandbox's, Authority the
	// latter alone.
	Bundle, Authority string
}

// Trust is what the sandbox's tools are to trust.
func (s *Sandbox) Trust() Trust {
	if s.Identity.Certificate == "" {
		return Trust{}
	}
	return Trust{Bundle: trustPath + "/" + bundleName, Authority: trustPath + "/" + authorityName}
}

// Identity is a certificate for a sandbox's bound hosts, and its key, as PEM.
// It is kept in the sandbox's record, which no sandbox sees, since it must
// outlive this server and egress: what has signed it is in a running sandbox.
type Identity struct{ Certificate, Key string }

// String implements fmt.Stringer without the key.
func (Identity) String() string { return "identity" }

// GoString implements fmt.GoStringer without the key.
func (i Identity) GoString() string { return i.String() }

// clockMargin is by how much the machine's clock may be set meanwhile.
const clockMargin = 24 * time.Hour

// newIdentity makes an authority, has it sign one certificate for all bound
// hosts, and forgets its key: nothing else is ever signed by what the sandbox
// trusts. It is bound to those hosts besides.
func newIdentity(bindings []Binding, life time.Duration) (id Identity, authority []byte, err error) {
	var names []string
	for _, b := range bindings {
		name, _, err := net.SplitHostPort(b.To)
		if err != nil {
			return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	from, until := time.Now().Add(-clockMargin), time.Now().Add(life+clockMargin)
	root := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Stromboli sandbox " + stromboli.NewSandboxID()}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "bound hosts"}, DNSNames: names, NotBefore: from, NotAfter: until,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, authorityKey)
	if err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return id, nil, fmt.Errorf("a certificate for bound hosts: %w", err)
	}
	id = Identity{Certificate: pemText("CERTIFICATE", der), Key: pemText("PRIVATE KEY", secret)}
	return id, []byte(pemText("CERTIFICATE", rootDER)), nil
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// bind gives a sandbox what the bound hosts of its next run need: the identity
// in its record, and its own authority and the image's in files. What the run
// before had is gone.
func (m *Manager) bind(ctx context.Context, s Spec, rec *record) error {
	dir := filepath.Join(m.dir(s.ID), trustName)
	for _, name := range []string{authorityName, bundleName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the sandbox's %s: %w", name, err)
		}
	}
	if len(s.Reach.Bindings) == 0 {
		return nil
	}
	bundle, err := m.facts.authorities(ctx, s.Checked.facts, s.Checked.imageID)
	if err != nil {
		return err
	}
	if len(bundle) == 0 {
		rec.Warnings = append(slices.Clone(rec.Warnings), stromboli.Warning{
			Code:    "no_authorities",
			Message: "the image has no bundle of certificate authorities: with bindings its tools trust the bound hosts alone; install ca-certificates in it",
		})
	}
	id, authority, err := newIdentity(s.Reach.Bindings, s.Plan.SandboxTimeout)
	if err != nil {
		return err
	}
	rec.Identity = id
	for name, content := range map[string][]byte{authorityName: authority, bundleName: append(bytes.Clone(bundle), authority...)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return fmt.Errorf("writing the sandbox's %s: %w", name, err)
		}
		if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // see above
			return fmt.Errorf("writing the sandbox's %s: %w", name, err)
		}
	}
	return nil
}

const (
	trustName = "trust" // in the sandbox's directory
	trustPath = "/opt/stromboli/trust"

	authorityName = "authority.pem"
	bundleName    = "bundle.pem"

	maxBundle = 2 << 20 // of an image; distributions' have 250 KB
)

// bundlePaths are where images have their authorities: Debian and Alpine, Fedora
// and RHEL, openSUSE, Alpine without the package.
func bundlePaths() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem",
	}
}

// authorities are the image's, as PEM; none where it has none that can be read.
// They are looked for when a run first needs them, once per image. What an image
// says is taken as certificates or not at all.
func (c *factCache) authorities(ctx context.Context, f facts, image string) ([]byte, error) {
	path := c.file(f.Digest) + ".authorities.pem"
	known, err := os.ReadFile(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return known, err
	}
	c.looking.Lock()
	defer c.looking.Unlock()
	var found []byte
	err = c.probe(ctx, image, func(id string) error {
		for _, name := range bundlePaths() {
			b, err := c.engine.ReadFile(ctx, id, name, maxBundle)
			switch {
			case err == nil:
				found = certificates(b)
			case errors.Is(err, engine.ErrNotFound), errors.Is(err, engine.ErrInvalid), errors.Is(err, engine.ErrTooLarge): // the next place
			default:
				return engineError(err)
			}
			if len(found) > 0 {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path+".new", found, 0o600); err != nil {
		return nil, storage(fmt.Errorf("keeping an image's authorities: %w", err))
	}
	return found, os.Rename(path+".new", path)
}

// certificates are the certificates of a bundle, in PEM again.
func certificates(bundle []byte) []byte {
	var out bytes.Buffer
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); block.Type == "CERTIFICATE" && err == nil {
			out.WriteString(pemText("CERTIFICATE", block.Bytes))
		}
	}
	return out.Bytes()
}
