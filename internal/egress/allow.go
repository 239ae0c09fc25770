package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// allowList is the targets that configuration exempts from the address policy.
type allowList []allowEntry

// allowEntry is a name or a range of addresses, at one port.
type allowEntry struct {
	name   string // "" for a range
	prefix netip.Prefix
	port   uint16
}

func parseAllow(entries []string) (allowList, error) {
	var list allowList
	for _, text := range entries {
		e, err := parseAllowEntry(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("allow %q: %w", text, err)
		}
		list = append(list, e)
	}
	return list, nil
}

func parseAllowEntry(text string) (allowEntry, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return allowEntry{}, fmt.Errorf("want host:port")
	}
	port, err := parsePort(text[i+1:])
	if err != nil {
		return allowEntry{}, err
	}
	host := text[:i]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return allowEntry{}, fmt.Errorf("want [address]:port")
		}
	} else if strings.Contains(host, ":") {
		return allowEntry{}, fmt.Errorf("an IPv6 address needs brackets")
	}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		return allowEntry{prefix: prefix.Masked(), port: port}, nil
	}
	name, addr, err := parseHost(host)
	if err != nil {
		return allowEntry{}, err
	}
	if addr.IsValid() {
		return allowEntry{prefix: netip.PrefixFrom(addr, addr.BitLen()), port: port}, nil
	}
	return allowEntry{name: name, port: port}, nil
}

// named reports whether a name is exempt, whatever it resolves to.
func (l allowList) named(name string, port uint16) bool {
	for _, e := range l {
		if e.name != "" && e.name == name && e.port == port {
			return true
		}
	}
	return false
}

// addressed reports whether an address is exempt.
func (l allowList) addressed(addr netip.Addr, port uint16) bool {
	for _, e := range l {
		if e.name == "" && e.port == port && e.prefix.Contains(addr) {
			return true
		}
	}
	return false
}

func parsePort(s string) (uint16, error) {
	// ParseUint alone would take no sign either, but "0080" is one of the forms
	// that different programs read differently.
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' {
		return 0, fmt.Errorf("port %.10q is not 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseHost takes a name or an address. A name comes back in lower case and
// without its final dot. What looks like a number in a form that some programs
// read as an address (decimal, octal, hex, short) is refused, not resolved.
func parseHost(s string) (string, netip.Addr, error) {
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
		if label == "" || len(label) > 63 {
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

// splitTarget takes "host:port".
func splitTarget(s string) (string, uint16, error) {
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("target %.80q: want host:port", s)
	}
	port, err := parsePort(portText)
	return host, port, err
}
