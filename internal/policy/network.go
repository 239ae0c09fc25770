package policy

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/tomblancdev/stromboli"
)

// maxHosts bounds each list of a request's network.
const maxHosts = 256

// NetworkConfig is what configuration says of sandboxes' networks.
type NetworkConfig struct {
	// Mode is the mode of requests that name none, and the widest that one may
	// name; unset: open.
	Mode stromboli.NetworkMode
	// Allow are the hosts of the mode allowlist for requests that name none.
	// Where Mode is allowlist a request can't name others.
	Allow []string
	// Deny are hosts that no request reaches.
	Deny []string
	// Bridge permits the mode bridge.
	Bridge bool
}

// Validate reports the first fault of c.
func (c NetworkConfig) Validate() error {
	if c.mode() == stromboli.NetworkBridge || width(c.mode()) < 0 {
		return fmt.Errorf("STROMBOLI_EGRESS_MODE: %q is none of open, allowlist, model, none", c.Mode)
	}
	if _, i, err := ParseHosts(c.Allow); err != nil {
		return fmt.Errorf("STROMBOLI_EGRESS_ALLOWLIST: entry %d: %w", i+1, err)
	}
	if _, i, err := ParseHosts(c.Deny); err != nil {
		return fmt.Errorf("STROMBOLI_EGRESS_DENY: entry %d: %w", i+1, err)
	}
	return nil
}

func (c NetworkConfig) mode() stromboli.NetworkMode {
	if c.Mode == "" {
		return stromboli.NetworkOpen
	}
	return c.Mode
}

// width orders the modes that egress enforces; -1 for any other.
func width(m stromboli.NetworkMode) int {
	return slices.Index([]stromboli.NetworkMode{
		stromboli.NetworkNone, stromboli.NetworkModel, stromboli.NetworkAllowlist, stromboli.NetworkOpen,
	}, m)
}

// Network is the complete network of a request: a mode, and lists in canonical
// form. A request can only narrow what configuration
// permits; errors name its field.
func (c NetworkConfig) Network(wish stromboli.Network) (stromboli.Network, error) {
	n := stromboli.Network{Mode: wish.Mode}
	switch {
	case n.Mode == "" && len(wish.Allow) > 0:
		n.Mode = stromboli.NetworkAllowlist
	case n.Mode == "":
		n.Mode = c.mode()
	}
	switch {
	case n.Mode == stromboli.NetworkBridge:
		return c.bridge(wish)
	case width(n.Mode) < 0:
		return n, stromboli.FieldError("network.mode", "%s is unknown; it is one of none, model, allowlist, open, bridge", quote(string(n.Mode)))
	case width(n.Mode) > width(c.mode()):
		return n, stromboli.FieldError("network.mode", "%s is wider than this server permits; STROMBOLI_EGRESS_MODE is %s", n.Mode, c.mode())
	case len(wish.Allow) > 0 && n.Mode != stromboli.NetworkAllowlist:
		return n, stromboli.FieldError("network.allow", "has a meaning in the mode allowlist only, not in %s", n.Mode)
	}
	permitted, _, err := ParseHosts(c.Allow)
	if err != nil {
		return n, err
	}
	allow, err := requested("network.allow", wish.Allow)
	if err != nil {
		return n, err
	}
	if c.mode() == stromboli.NetworkAllowlist {
		for i, p := range allow {
			if !permitted.covers(p) {
				return n, stromboli.FieldError(field("network.allow", i), "%s is not within STROMBOLI_EGRESS_ALLOWLIST", p)
			}
		}
	}
	if n.Mode == stromboli.NetworkAllowlist {
		if len(allow) == 0 {
			allow = permitted
		}
		n.Allow = allow.Strings()
	}
	deny, err := requested("network.deny", wish.Deny)
	if err != nil {
		return n, err
	}
	always, _, err := ParseHosts(c.Deny)
	if err != nil {
		return n, err
	}
	for _, p := range append(always, deny...).Strings() {
		if !slices.Contains(n.Deny, p) { // a network that is judged again has them
			n.Deny = append(n.Deny, p)
		}
	}
	return n, nil
}

func (c NetworkConfig) bridge(wish stromboli.Network) (stromboli.Network, error) {
	n := stromboli.Network{Mode: stromboli.NetworkBridge}
	switch {
	case !c.Bridge:
		return n, stromboli.FieldError("network.mode", "bridge is not filtered, so this server doesn't permit it; STROMBOLI_EGRESS_BRIDGE would")
	case len(wish.Allow) > 0:
		return n, stromboli.FieldError("network.allow", "has no effect on a bridge, which is not filtered")
	case len(wish.Deny) > 0:
		return n, stromboli.FieldError("network.deny", "has no effect on a bridge, which is not filtered")
	}
	return n, nil
}

func requested(name string, patterns []string) (Hosts, error) {
	if len(patterns) > maxHosts {
		return nil, stromboli.FieldError(name, "has %d entries, at most %d are possible", len(patterns), maxHosts)
	}
	hosts, i, err := ParseHosts(patterns)
	if err != nil {
		return nil, stromboli.FieldError(field(name, i), "%v", err)
	}
	return hosts, nil
}

// CanChange reports why a living sandbox's network can't become another: a
// device is there from the beginning or never.
func CanChange(from, to stromboli.Network) error {
	if (from.Mode == stromboli.NetworkBridge) != (to.Mode == stromboli.NetworkBridge) {
		return stromboli.FieldError("network.mode", "a sandbox gets its bridge when it is made: it can't change from %s to %s", from.Mode, to.Mode)
	}
	return nil
}

func field(list string, i int) string { return list + "[" + strconv.Itoa(i) + "]" }
