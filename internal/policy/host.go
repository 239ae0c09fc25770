package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ParsePort takes 1 to 65535 in plain decimal. "0080" is one of the forms that
// different programs read differently.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("port %.10q is not 1 to 65535", s)
	}
	return uint16(n), nil
}

// ParseHost takes a name or an address. A name comes back in lower case and
// without its final dot. What looks like a number in a form that some programs
// read as an address (decimal, octal, hex, short) is refused, not resolved.
func ParseHost(s string) (string, netip.Addr, error) {
	if s == "" || len(s) > 254 {
		return "", netip.Addr{}, fmt.Errorf("host: %d characters are not 1 to 254", len(s))
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return "", netip.Addr{}, fmt.Errorf("host: an address with a zone is not global")
		}
		return "", addr.Unmap(), nil
	}
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return "", netip.Addr{}, fmt.Errorf("host %.80q: not a name", s)
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", netip.Addr{}, fmt.Errorf("host %.80q: not a name", s)
			}
		}
	}
	if last := labels[len(labels)-1]; numeric(last) {
		return "", netip.Addr{}, fmt.Errorf("host %.80q: an address in a form that isn't understood", s)
	}
	return name, netip.Addr{}, nil
}

// numeric reports whether the last label of a host makes it a number (WHATWG
// URL: "ends in a number").
func numeric(label string) bool {
	if strings.Trim(label, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(label, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// Hosts are host patterns made ready. It is immutable.
type Hosts []hostPattern

// hostPattern is a name, the names below one, or a range of addresses, at one
// port or at all (0).
type hostPattern struct {
	name   string // "" for a range
	below  bool   // the names below name, not itself
	prefix netip.Prefix
	port   uint16
}

// ParseHosts reads patterns; see stromboli.Network. The error tells the index
// of the first that is none.
func ParseHosts(patterns []string) (hosts Hosts, index int, err error) {
	for i, text := range patterns {
		p, err := parseHostPattern(text)
		if err != nil {
			return nil, i, err
		}
		hosts = append(hosts, p)
	}
	return hosts, 0, nil
}

func parseHostPattern(text string) (hostPattern, error) {
	if prefix, ok := parsePrefix(text); ok { // without a port, bare IPv6 included
		return hostPattern{prefix: prefix}, nil
	}
	host, port := text, uint16(0)
	if i := strings.LastIndexByte(text, ':'); i >= 0 {
		var err error
		if port, err = ParsePort(text[i+1:]); err != nil {
			return hostPattern{}, err
		}
		host = text[:i]
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		prefix, isPrefix := parsePrefix(inner)
		if !ok || !isPrefix || !prefix.Addr().Is6() {
			return hostPattern{}, fmt.Errorf("host %.80q: in brackets stands an IPv6 address or range", text)
		}
		return hostPattern{prefix: prefix, port: port}, nil
	}
	if prefix, ok := parsePrefix(host); ok {
		if prefix.Addr().Is6() {
			return hostPattern{}, fmt.Errorf("host %.80q: an IPv6 address with a port needs brackets", text)
		}
		return hostPattern{prefix: prefix, port: port}, nil
	}
	rest, below := strings.CutPrefix(host, "*.")
	name, addr, err := ParseHost(rest)
	if err != nil || addr.IsValid() {
		return hostPattern{}, fmt.Errorf("host %.80q: it is neither a name, *.name, an address nor a range, with or without :port", text)
	}
	return hostPattern{name: name, below: below, port: port}, nil
}

// parsePrefix takes an address or a range. IPv4 hidden in IPv6 is refused: an
// entry that never matches would be worse than none.
func parsePrefix(s string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, false
		}
		addr = Embedded(addr)
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return prefix.Masked(), true
}

// String is the pattern's canonical form.
func (p hostPattern) String() string {
	host := p.name
	switch {
	case p.below:
		host = "*." + p.name
	case p.name == "" && p.prefix.IsSingleIP():
		host = p.prefix.Addr().String()
	case p.name == "":
		host = p.prefix.String()
	}
	if p.port == 0 {
		return host
	}
	if p.name == "" && p.prefix.Addr().Is6() {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(p.port))
}

// OnlyNames reports whether no pattern is an address or a range.
func (h Hosts) OnlyNames() bool {
	for _, p := range h {
		if p.name == "" {
			return false
		}
	}
	return true
}

// Strings are the patterns' canonical forms.
func (h Hosts) Strings() []string {
	var list []string
	for _, p := range h {
		list = append(list, p.String())
	}
	return list
}

// Name returns the first pattern that matches a name (in the form that
// ParseHost gives it) at a port.
func (h Hosts) Name(name string, port uint16) (pattern string, ok bool) {
	for _, p := range h {
		if p.name != "" && p.at(port) && p.named(name) {
			return p.String(), true
		}
	}
	return "", false
}

// Addr returns the first pattern that matches an address at a port. IPv4 within
// IPv6 is that IPv4 address.
func (h Hosts) Addr(addr netip.Addr, port uint16) (pattern string, ok bool) {
	addr = Embedded(addr)
	for _, p := range h {
		if p.name == "" && p.at(port) && p.prefix.Contains(addr) {
			return p.String(), true
		}
	}
	return "", false
}

func (p hostPattern) at(port uint16) bool { return p.port == 0 || p.port == port }

func (p hostPattern) named(name string) bool {
	if p.below {
		return strings.HasSuffix(name, "."+p.name)
	}
	return name == p.name
}

// covers reports whether h permits everything that p does.
func (h Hosts) covers(p hostPattern) bool {
	for _, q := range h {
		if q.port != 0 && q.port != p.port {
			continue
		}
		switch {
		case (q.name == "") != (p.name == ""):
		case q.name == "":
			if q.prefix.Bits() <= p.prefix.Bits() && q.prefix.Contains(p.prefix.Addr()) {
				return true
			}
		case q.below && p.below:
			if p.name == q.name || q.named(p.name) {
				return true
			}
		case !p.below && q.named(p.name):
			return true
		}
	}
	return false
}
