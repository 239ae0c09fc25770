package policy_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/tomblancdev/stromboli/internal/policy"
)

func TestPublicAddrRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		// IPv4, first and last of each range.
		"0.0.0.0", "0.0.0.1", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200",
		"100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.0.1", "169.254.169.254", "169.254.170.2",
		"172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.192", "192.0.0.255",
		"192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.0", "198.19.255.255",
		"198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"168.63.129.16",
		// IPv6.
		"::", "::1", "64:ff9b:1::1", "64:ff9b:1:ffff::8.8.8.8", "100::1", "100:0:0:1::1", "2001::1", "2001:0:53aa:64c:0:fbff:ffff:fffe",
		"2001:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff:ffff::1", "2001:db8::1", "3fff::1", "3fff:fff::1",
		"5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fdff::1", "fe80::1", "febf::1", "fec0::1", "feff::1",
		"ff02::1", "ff0e::1", "400::1", "1fff::1", "4000::1", "8000::1", "e000::1", "::ffff:0:8.8.8.8",
		// A zone is never global.
		"fe80::1%eth0", "2606:4700::1%lo",
		// IPv4 within IPv6.
		"::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:168.63.129.16", "::ffff:0.0.0.0",
		"64:ff9b::127.0.0.1", "64:ff9b::10.1.2.3", "64:ff9b::a9fe:a9fe", "64:ff9b::", "64:ff9b::168.63.129.16",
		"2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:c0a8:101:1:2:3:4:5", "2002::1", "2002:a83f:8110::",
		"::127.0.0.1", "::10.0.0.1", "::169.254.169.254", "::0.0.0.2", "::192.168.1.1",
	} {
		if err := policy.PublicAddr(netip.MustParseAddr(s)); !errors.Is(err, policy.ErrAddressRefused) {
			t.Errorf("PublicAddr(%s) = %v, want a refusal", s, err)
		}
	}
	if err := policy.PublicAddr(netip.Addr{}); !errors.Is(err, policy.ErrAddressRefused) {
		t.Errorf("the zero address: %v, want a refusal", err)
	}
}

func TestPublicAddrAllows(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1",
		"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.1", "192.0.3.1",
		"192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
		"168.63.129.15", "168.63.129.17", "140.82.121.4",
		"2000::1", "2001:200::1", "2001:4860:4860::8888", "2606:4700:4700::1111", "2a00:1450::1", "2620:4f:8000::1", "3ffe::1",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "::8.8.8.8",
	} {
		if err := policy.PublicAddr(netip.MustParseAddr(s)); err != nil {
			t.Errorf("PublicAddr(%s) = %v, want nil", s, err)
		}
	}
}

func TestEmbedded(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"8.8.8.8":            "8.8.8.8",
		"::ffff:8.8.8.8":     "8.8.8.8",
		"64:ff9b::1.2.3.4":   "1.2.3.4",
		"2002:102:304::9":    "1.2.3.4",
		"::1.2.3.4":          "1.2.3.4",
		"::":                 "::",
		"::1":                "::1",
		"fe80::1%eth0":       "fe80::1",
		"2606:4700::1":       "2606:4700::1",
		"64:ff9b:1::1.2.3.4": "64:ff9b:1::102:304",
	} {
		if got := policy.Embedded(netip.MustParseAddr(in)); got != netip.MustParseAddr(want) {
			t.Errorf("Embedded(%s) = %s, want %s", in, got, want)
		}
	}
}

// FuzzPublicAddr: no address makes it panic, and an IPv4 address is judged the
// same in each of its IPv6 forms.
func FuzzPublicAddr(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte{8, 8, 8, 8})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := netip.AddrFromSlice(b); ok {
			_ = policy.PublicAddr(a)
		}
		if len(b) != 4 {
			return
		}
		v4 := netip.AddrFrom4([4]byte(b))
		want := policy.PublicAddr(v4) == nil
		nat64 := [16]byte{0x00, 0x64, 0xff, 0x9b, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
		sixToFour := [16]byte{0x20, 0x02, b[0], b[1], b[2], b[3], 15: 1}
		compatible := [16]byte{12: b[0], 13: b[1], 14: b[2], 15: b[3]}
		for _, a := range []netip.Addr{
			netip.AddrFrom16(v4.As16()), netip.AddrFrom16(nat64), netip.AddrFrom16(sixToFour), netip.AddrFrom16(compatible),
		} {
			if got := policy.PublicAddr(a) == nil; got != want {
				t.Errorf("%s public: %v, but %s: %v", a, got, v4, want)
			}
		}
	})
}
