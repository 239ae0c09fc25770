package policy

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrAddressRefused is in the chain of every error of PublicAddr.
var ErrAddressRefused = errors.New("address refused")

// addressRule names a range of addresses that no sandbox may reach.
type addressRule struct {
	prefix netip.Prefix
	why    string
}

// refusedRanges returns what the IANA special-purpose registries for IPv4 and
// IPv6 list as not globally reachable, with three widenings that fail closed:
// the whole of 192.0.0.0/24 and 2001::/23 (both hold a few anycast services
// that are reachable in theory), deprecated ranges, and the metadata services
// that clouds put at addresses which look public.
func refusedRanges() []addressRule {
	p := netip.MustParsePrefix
	return []addressRule{
		{p("0.0.0.0/8"), "this network"},
		{p("10.0.0.0/8"), "private use"},
		{p("100.64.0.0/10"), "carrier-grade NAT"}, // Alibaba's metadata 100.100.100.200 included
		{p("127.0.0.0/8"), "loopback"},
		{p("169.254.0.0/16"), "link-local"}, // the metadata address of most clouds included
		{p("172.16.0.0/12"), "private use"},
		{p("192.0.0.0/24"), "protocol assignments"}, // Oracle's metadata 192.0.0.192 included
		{p("192.0.2.0/24"), "documentation"},
		{p("192.88.99.0/24"), "deprecated 6to4 relay"},
		{p("192.168.0.0/16"), "private use"},
		{p("198.18.0.0/15"), "benchmarking"},
		{p("198.51.100.0/24"), "documentation"},
		{p("203.0.113.0/24"), "documentation"},
		{p("224.0.0.0/4"), "multicast"},
		{p("240.0.0.0/4"), "reserved"}, // limited broadcast included
		{p("168.63.129.16/32"), "cloud metadata"},

		{p("::/128"), "unspecified"},
		{p("::1/128"), "loopback"},
		{p("64:ff9b:1::/48"), "local NAT64"},
		{p("100::/64"), "discard-only"},
		{p("100:0:0:1::/64"), "dummy prefix"},
		{p("2001::/23"), "protocol assignments"}, // Teredo, benchmarking and ORCHID included
		{p("2001:db8::/32"), "documentation"},
		{p("3fff::/20"), "documentation"},
		{p("5f00::/16"), "segment routing"},
		{p("fc00::/7"), "unique local"}, // fd00:ec2::254 and fd20:ce::254 (metadata) included
		{p("fe80::/10"), "link-local"},
		{p("fec0::/10"), "deprecated site-local"},
		{p("ff00::/8"), "multicast"},
	}
}

// globalUnicast is the only part of IPv6 that is allocated for hosts.
func globalUnicast() netip.Prefix { return netip.MustParsePrefix("2000::/3") }

// AddressPolicy judges addresses. It is pure and safe for concurrent use.
type AddressPolicy struct {
	refused []addressRule
	global  netip.Prefix
}

// NewAddressPolicy returns the policy for public hosts.
func NewAddressPolicy() *AddressPolicy {
	return &AddressPolicy{refused: refusedRanges(), global: globalUnicast()}
}

// Check returns nil only for an address that is globally reachable: a packet
// to it leaves for the public internet, wherever this host stands. IPv4 within
// an IPv6 address (mapped, NAT64, 6to4, compatible) is judged as that IPv4
// address. Whatever is neither known as public nor parsed is refused. The
// host's own addresses are not known here; see Embedded for comparing them.
func (p *AddressPolicy) Check(addr netip.Addr) error {
	if !addr.IsValid() {
		return fmt.Errorf("%w: not an address", ErrAddressRefused)
	}
	if addr.Zone() != "" {
		return fmt.Errorf("%w: %s has a zone, so it is not global", ErrAddressRefused, addr)
	}
	judged := Embedded(addr)
	for _, r := range p.refused {
		if r.prefix.Contains(judged) {
			return refusal(addr, judged, r.why)
		}
	}
	if judged.Is6() && !p.global.Contains(judged) {
		return refusal(addr, judged, "not allocated as global unicast")
	}
	return nil
}

func refusal(addr, judged netip.Addr, why string) error {
	if judged != addr {
		return fmt.Errorf("%w: %s means %s (%s)", ErrAddressRefused, addr, judged, why)
	}
	return fmt.Errorf("%w: %s (%s)", ErrAddressRefused, addr, why)
}

// PublicAddr is Check of a new policy, for callers that judge one address.
func PublicAddr(addr netip.Addr) error { return NewAddressPolicy().Check(addr) }

// Embedded returns the IPv4 address that an IPv6 address stands for: mapped
// (::ffff:0:0/96), well-known NAT64 (64:ff9b::/96), 6to4 (2002::/16) and
// compatible (::/96, the unspecified and the loopback address excepted). Any
// other address is returned as it is, without its zone.
func Embedded(addr netip.Addr) netip.Addr {
	addr = addr.WithZone("")
	if addr.Is4In6() {
		return addr.Unmap()
	}
	if !addr.Is6() {
		return addr
	}
	b := addr.As16()
	switch {
	case b[0] == 0x20 && b[1] == 0x02: // 2002:AABB:CCDD::/48 belongs to the host A.B.C.D
		return netip.AddrFrom4([4]byte(b[2:6]))
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}:
		return netip.AddrFrom4([4]byte(b[12:16]))
	case [12]byte(b[:12]) == [12]byte{} && !addr.IsUnspecified() && !addr.IsLoopback():
		return netip.AddrFrom4([4]byte(b[12:16]))
	}
	return addr
}
