package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// rules are a sandbox's network made ready, immutable.
type rules struct {
	mode        stromboli.NetworkMode
	allow, deny policy.Hosts
	bound       bound
}

// compileRules refuses a network that is not complete: a sandbox without rules
// reaches nothing.
func compileRules(n stromboli.Network) (*rules, error) {
	r := &rules{mode: n.Mode}
	switch n.Mode {
	case stromboli.NetworkNone, stromboli.NetworkModel, stromboli.NetworkAllowlist, stromboli.NetworkOpen, stromboli.NetworkBridge:
	default:
		return nil, fmt.Errorf("network: unknown mode %q", n.Mode)
	}
	var err error
	if r.allow, _, err = policy.ParseHosts(n.Allow); err != nil {
		return nil, fmt.Errorf("network: allow: %w", err)
	}
	if r.deny, _, err = policy.ParseHosts(n.Deny); err != nil {
		return nil, fmt.Errorf("network: deny: %w", err)
	}
	return r, nil
}

// compileSandbox makes a registration's network and bindings ready.
func compileSandbox(s Sandbox) (*rules, error) {
	r, err := compileRules(s.Network)
	if err != nil {
		return nil, err
	}
	r.bound, err = compileBindings(s.Bindings, s.Identity)
	return r, err
}

// target is where a connection is to lead: a name or an address.
type target struct {
	name string
	addr netip.Addr
	port uint16
}

func parseTarget(s string) (target, error) {
	host, port, err := splitTarget(s)
	if err != nil {
		return target{}, err
	}
	name, addr, err := policy.ParseHost(host)
	return target{name: name, addr: addr, port: port}, err
}

// host is the target without its port.
func (t target) host() string {
	if t.name != "" {
		return t.name
	}
	return t.addr.String()
}

func (t target) String() string { return net.JoinHostPort(t.host(), strconv.Itoa(int(t.port))) }

// judge refuses what the mode and the lists do, before any look-up: a name is
// judged by names alone, so that asking for one tells nobody anything.
func (r *rules) judge(t target) error {
	switch r.mode {
	case stromboli.NetworkNone:
		return refuse(fmt.Errorf("the run's network mode is none: nothing can be reached"))
	case stromboli.NetworkModel:
		return refuse(fmt.Errorf("the run's network mode is model: only the model's API can be reached"))
	case stromboli.NetworkAllowlist, stromboli.NetworkOpen, stromboli.NetworkBridge:
	}
	if pattern, ok := match(r.deny, t); ok {
		return refuse(fmt.Errorf("%s is denied by %s", t, pattern))
	}
	if r.mode == stromboli.NetworkAllowlist {
		if _, ok := match(r.allow, t); !ok {
			return refuse(fmt.Errorf("%s is not among the hosts that the run's network allows", t))
		}
	}
	return nil
}

func match(h policy.Hosts, t target) (pattern string, ok bool) {
	if t.name != "" {
		return h.Name(t.name, t.port)
	}
	return h.Addr(t.addr, t.port)
}

// judgeAddr refuses an address that a name has.
func (r *rules) judgeAddr(addr netip.Addr, port uint16) error {
	if pattern, ok := r.deny.Addr(addr, port); ok {
		return refuse(fmt.Errorf("%s is denied by %s", addr, pattern))
	}
	return nil
}

// judgeModel refuses the model itself.
func (r *rules) judgeModel() error {
	if r.mode == stromboli.NetworkNone {
		return refuse(fmt.Errorf("the run's network mode is none: not even the model can be reached"))
	}
	return nil
}
