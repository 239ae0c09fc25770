package egress

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

func TestParseAllow(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "host", "host:0", ":80", "::1:80", "[::1:80", "10.0.0.0/33:80", "a b:80", "host:80:81", "127.1:80"} {
		if _, err := parseAllow([]string{in}); err == nil {
			t.Errorf("parseAllow(%q): want an error", in)
		}
	}
	list, err := parseAllow([]string{"Git.Internal:443", "10.1.2.3:80", "[fd00::1]:22", "192.168.0.0/16:8080", "[fd01::/16]:9"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr string
		port uint16
		want bool
	}{
		{"10.1.2.3", 80, true},
		{"10.1.2.3", 81, false},
		{"10.1.2.4", 80, false},
		{"fd00::1", 22, true},
		{"192.168.7.7", 8080, true},
		{"192.169.0.1", 8080, false},
		{"fd01::7", 9, true},
	} {
		if got := list.addressed(netip.MustParseAddr(c.addr), c.port); got != c.want {
			t.Errorf("addressed(%s, %d) = %v", c.addr, c.port, got)
		}
	}
	if !list.named("git.internal", 443) || list.named("git.internal", 80) || list.named("x.git.internal", 443) {
		t.Error("named: wrong")
	}
}

// dialText does what a proxied request does.
func dialText(ctx context.Context, d *dialer, text string, allow allowList) (*net.TCPConn, error) {
	to, err := parseTarget(text)
	if err != nil {
		return nil, refuse(err)
	}
	return d.dial(ctx, to, allow, &rules{mode: stromboli.NetworkOpen})
}

// TestDialRefuses checks the whole way from a target to a refusal: nothing is dialled.
func TestDialRefuses(t *testing.T) {
	t.Parallel()
	g := &gateway{dialer: newDialer()}
	resolving(map[string][]string{
		"mixed.example":    {"1.1.1.1", "10.0.0.1"},
		"mixed6.example":   {"2606:4700::1", "fe80::1"},
		"mapped.example":   {"::ffff:127.0.0.1"},
		"nat64.example":    {"64:ff9b::7f00:1"},
		"metadata.example": {"169.254.169.254"},
		"azure.example":    {"168.63.129.16"},
		"own.example":      {"93.184.216.34"},
		"own64.example":    {"64:ff9b::5db8:d822"},
		"zero.example":     {"0.0.0.0"},
	})(g)
	g.dialer.ownAddrs = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("93.184.216.34")}, nil }
	g.dialer.transport.Control = nil
	g.dialer.transport.ControlContext = refuseEveryDial(t)
	for _, target := range []string{
		"mixed.example:443", "mixed6.example:443", "mapped.example:80", "nat64.example:80", "metadata.example:80", "azure.example:80",
		"own.example:443", "own64.example:443", "zero.example:80", "127.0.0.1:80", "[::1]:80", "[::]:80", "0.0.0.0:80", "[::ffff:127.0.0.1]:80",
		"93.184.216.34:443", "[64:ff9b::93.184.216.34]:443", "[2002:5db8:d822::1]:443", "2130706433:80", "0x7f.0.0.1:80", "0177.0.0.1:80", "127.1:80",
		":80", "", "example.com", "example.com:", "example.com:0", "example.com:65536", "example.com:http", "[fe80::1%25lo]:80", "[fe80::1%lo]:80",
		"mixed.example.:443", "MIXED.example:443", "a:b:80",
	} {
		c, err := dialText(t.Context(), g.dialer, target, nil)
		if !errors.Is(err, errRefused) {
			t.Errorf("dial(%q) = %v, %v; want a refusal", target, c, err)
		}
	}
	g.dialer.ownAddrs = func() ([]netip.Addr, error) { return nil, errors.New("netlink is away") }
	if _, err := dialText(t.Context(), g.dialer, "1.1.1.1:443", nil); !errors.Is(err, errRefused) {
		t.Errorf("with unknown own addresses: %v, want a refusal", err)
	}
}

func TestDialAllowList(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	g := &gateway{dialer: newDialer()}
	resolving(map[string][]string{"svc.internal": {"127.0.0.1"}, "mix.internal": {"127.0.0.1", "10.9.9.9"}})(g)
	for _, c := range []struct {
		allow, target string
		want          bool
	}{
		{"svc.internal:" + port, "svc.internal:" + port, true},
		{"svc.internal:" + port, "127.0.0.1:" + port, false},
		{"svc.internal:1", "svc.internal:" + port, false},
		{"127.0.0.1:" + port, "svc.internal:" + port, true},
		{"127.0.0.0/8:" + port, "svc.internal:" + port, true},
		{"127.0.0.1:" + port, "[::ffff:127.0.0.1]:" + port, true},
		{"127.0.0.1:" + port, "mix.internal:" + port, false},
		{"mix.internal:" + port, "mix.internal:" + port, true},
	} {
		allow, err := parseAllow([]string{c.allow})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dialText(t.Context(), g.dialer, c.target, allow)
		if (err == nil) != c.want || (err != nil && !errors.Is(err, errRefused)) {
			t.Errorf("allow %s, dial %s: %v", c.allow, c.target, err)
		}
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// TestConnectTakesTheFirstThatAnswers: an address that is silent or closed
// doesn't keep the next one from being tried, and no dial is left behind.
func TestConnectTakesTheFirstThatAnswers(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d := newDialer()
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	c, err := d.connect(ctx, addrs, port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if _, err := d.connect(ctx, addrs[:2], port); err == nil {
		t.Error("nobody listens there, but a connection was made")
	}
}

// FuzzTarget: whatever a sandbox asks for, what is not refused is a clean name
// or a public address.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"example.com:443", "[::1]:80", "127.0.0.1:1", "0x7f.1:80", "a..b:1", "[fe80::1%lo]:1", "x:65536"} {
		f.Add(s)
	}
	d := newDialer()
	d.ownAddrs = func() ([]netip.Addr, error) { return nil, nil }
	f.Fuzz(func(t *testing.T, target string) {
		host, port, err := splitTarget(target)
		if err != nil {
			return
		}
		name, addr, err := policy.ParseHost(host)
		if err != nil || port == 0 {
			return
		}
		if (name == "") != addr.IsValid() {
			t.Fatalf("%q is both or neither: %q, %v", target, name, addr)
		}
		if addr.IsValid() && d.judge([]netip.Addr{addr}, port, nil) == nil && (addr.IsLoopback() || addr.IsPrivate() || !addr.IsGlobalUnicast()) {
			t.Fatalf("%q is not refused", target)
		}
		if name != "" {
			if _, err := netip.ParseAddr(name); err == nil {
				t.Fatalf("%q is taken for a name", target)
			}
		}
	})
}
