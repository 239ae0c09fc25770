package sandbox

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestIdentity: a sandbox's certificate is for its bound hosts and no other, by
// its own names and by what its authority may sign, and lives no longer than it.
func TestIdentity(t *testing.T) {
	t.Parallel()
	id, authority, err := newIdentity([]Binding{{To: "git.example:443"}, {To: "git.example:8443"}, {To: "npm.example:443"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(id.Certificate), []byte(id.Key))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) || bytes.Contains(authority, []byte("PRIVATE")) {
		t.Fatalf("%s", authority)
	}
	now := time.Now()
	for name, c := range map[string]struct {
		at time.Time
		ok bool
	}{
		"git.example": {now, true}, "npm.example": {now.Add(time.Hour), true}, "other.example": {now, false}, "a.git.example": {now, false},
	} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: c.at})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: "git.example", Roots: roots, CurrentTime: now.Add(time.Hour + clockMargin + time.Minute)}); err == nil {
		t.Error("it holds when the sandbox must be gone")
	}
	if len(pair.Leaf.DNSNames) != 2 || pair.Leaf.IsCA {
		t.Errorf("%v, authority: %v", pair.Leaf.DNSNames, pair.Leaf.IsCA)
	}
	shown := fmt.Sprintf("%v %+v %#v", id, id, struct{ I Identity }{id}) + fmt.Sprintf("%v %#v", Binding{To: "x", Value: "hidden"}, []Binding{{Value: "hidden"}})
	if strings.Contains(shown, "PRIVATE") || strings.Contains(shown, "hidden") {
		t.Errorf("printed: %s", shown)
	}
}

// TestCertificates: an image's bundle is taken as certificates or not at all.
func TestCertificates(t *testing.T) {
	t.Parallel()
	_, one, err := newIdentity([]Binding{{To: "a.example:443"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, two, err := newIdentity([]Binding{{To: "b.example:443"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	bad := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	hostile := "# comment\x00\n" + string(one) + id.Key + bad + "export X=$(evil)\n" + string(two) + "-----BEGIN CERTIFICATE-----\nAAAA"
	if got, want := certificates([]byte(hostile)), append(one, two...); !bytes.Equal(got, want) {
		t.Errorf("%s", got)
	}
	if got := certificates([]byte("nothing")); len(got) != 0 {
		t.Errorf("%s", got)
	}
}
