package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"testing"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

func httptestTLS(t *testing.T, rc *receiver) string {
	t.Helper()
	s := httptest.NewUnstartedServer(rc)
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// TestSignatures: receivers verify with the standard's own library, with either
// secret while both are configured, and as the contract says with the newest.
func TestSignatures(t *testing.T) {
	w := newWorld(t)
	key := []byte("0123456789abcdef01234567")
	encoded := "whsec_" + base64.StdEncoding.EncodeToString(key)
	rc := newReceiver(t, nil)
	w.start(func(c *Config) {
		c.Secrets = []Secret{{Text: []byte(encoded), Key: key}, {Text: []byte("the older secret"), Key: []byte("the older secret")}}
	})
	d := w.until(w.owe(rc.URL), stromboli.DeliveryDelivered)
	h := rc.got()[0]
	newest, err := standard.NewWebhook(encoded)
	if err != nil {
		t.Fatal(err)
	}
	older, err := standard.NewWebhookRaw([]byte("the older secret"))
	if err != nil {
		t.Fatal(err)
	}
	for name, wh := range map[string]*standard.Webhook{"newest": newest, "older": older} {
		if err := wh.Verify(h.body, h.header); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := wh.Verify(append([]byte(" "), h.body...), h.header); err == nil {
			t.Errorf("%s verifies another body", name)
		}
	}
	other, err := standard.NewWebhookRaw([]byte("another secret"))
	if err != nil {
		t.Fatal(err)
	}
	if other.Verify(h.body, h.header) == nil {
		t.Error("any secret verifies")
	}
	at := h.header.Get("X-Stromboli-Timestamp")
	mac := hmac.New(sha256.New, []byte(encoded))
	mac.Write([]byte(at + "." + string(h.body)))
	if got, want := h.header.Get("X-Stromboli-Signature"), "sha256="+hex.EncodeToString(mac.Sum(nil)); got != want || at == "" || at != h.header.Get("webhook-timestamp") {
		t.Errorf("the contract's signature is %s at %s, want %s", got, at, want)
	}
	// The standard's by hand, since the library made it.
	mac = hmac.New(sha256.New, key)
	mac.Write([]byte(d.ID + "." + at + "." + string(h.body)))
	if parts := strings.Fields(h.header.Get("webhook-signature")); len(parts) != 2 || parts[0] != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		t.Errorf("the standard's signatures are %q", parts)
	}
	for _, s := range []string{encoded, "older secret", string(key)} {
		if strings.Contains(w.log.String(), s) {
			t.Errorf("the log has a secret: %s", w.log.String())
		}
	}
}

// TestExplain: what the deliveries' owner is told says nothing of the network
// that the server stands in.
func TestExplain(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 80}, Err: err}
	}
	for want, err := range map[string]error{
		"the receiver's name is not known":                op(&net.DNSError{Err: "no such host", Name: "inner-name", Server: "10.0.0.53:53", IsNotFound: true}),
		"the receiver's name could not be looked up":      op(&net.DNSError{Err: "server misbehaving", Name: "inner-name", Server: "10.0.0.53:53"}),
		"the receiver refused the connection":             op(syscall.ECONNREFUSED),
		"the receiver broke the connection off":           op(syscall.ECONNRESET),
		"the receiver can't be reached":                   op(syscall.EHOSTUNREACH),
		"the receiver did not answer in time":             op(context.DeadlineExceeded),
		"no TLS connection to the receiver could be made": tls.AlertError(40),
		"the receiver did not answer as HTTP says":        errors.New("malformed HTTP status code from 10.0.0.9"),
	} {
		if got := failed(withoutURL(&url.Error{Op: "Post", URL: "http://x/?token=hidden", Err: err})); got.shown != want || strings.Contains(got.log(), "hidden") {
			t.Errorf("%v: %q, logged as %q", err, got.shown, got.log())
		}
	}
}

// TestOwnAddresses: a public address that is this host's own is refused too,
// unless it is allowed.
func TestOwnAddresses(t *testing.T) {
	allow, _, err := policy.ParseHosts([]string{"8.8.4.4"})
	if err != nil {
		t.Fatal(err)
	}
	d := newDialer(allow)
	d.ownAddrs = func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.ParseIP("8.8.8.8"), Mask: net.CIDRMask(24, 32)}}, nil
	}
	for addr, ok := range map[string]bool{"8.8.8.8": false, "8.8.8.9": true, "::ffff:8.8.8.8": false, "10.0.0.1": false, "2606:4700::1": true, "fe80::1%lo": false} {
		if err := d.judge(netip.MustParseAddr(addr)); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
	d.ownAddrs = func() ([]net.Addr, error) { return nil, net.ErrClosed }
	if d.judge(netip.MustParseAddr("8.8.8.9")) == nil {
		t.Error("it is connected to though the host's own addresses are not known")
	}
}
