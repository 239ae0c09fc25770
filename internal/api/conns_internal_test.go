package api

import (
	"net"
	"net/netip"
	"testing"
)

func TestNetworkOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7/32",
		"::ffff:192.0.2.7":     "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"fe80::1%lo":           "fe80::/64",
		"::1":                  "::/64",
	} {
		a := netip.MustParseAddr(addr)
		if got := networkOf(net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 9))); got.String() != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := networkOf(&net.UnixAddr{}); got.IsValid() {
		t.Error(got)
	}
}
