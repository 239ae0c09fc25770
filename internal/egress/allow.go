package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/tomblancdev/stromboli/internal/policy"
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
	port, err := policy.ParsePort(text[i+1:])
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
	name, addr, err := policy.ParseHost(host)
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

// splitTarget takes "host:port".
func splitTarget(s string) (string, uint16, error) {
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("target %.80q: want host:port", s)
	}
	port, err := policy.ParsePort(portText)
	return host, port, err
}
