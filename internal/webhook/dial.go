package webhook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli/internal/policy"
)

// errRefused is in the chain of the errors of targets that may not be reached.
var errRefused = errors.New("the target is not public, and STROMBOLI_WEBHOOK_ALLOW doesn't permit it")

// dialer connects to public addresses, and to what is allowed by name or
// address.
type dialer struct {
	allow    atomic.Pointer[policy.Hosts]
	public   *policy.AddressPolicy
	ownAddrs func() ([]net.Addr, error)
}

func newDialer(allow policy.Hosts) *dialer {
	d := &dialer{public: policy.NewAddressPolicy(), ownAddrs: net.InterfaceAddrs}
	d.allow.Store(&allow)
	return d
}

// dial judges each address at the last moment before it is connected to,
// whatever a name resolved to before.
func (d *dialer) dial(ctx context.Context, network, hostPort string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	name, _, err := policy.ParseHost(host)
	if err != nil {
		return nil, err
	}
	nd := net.Dialer{
		KeepAlive: -1, // a connection lives for one attempt
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("%w: %w", errRefused, err)
			}
			if d.allow.Load().Permits(policy.WebhookTarget{Name: name, Port: to.Port()}, to.Addr()) {
				return nil
			}
			return d.judge(to.Addr())
		},
		FallbackDelay: 300 * time.Millisecond,
	}
	return nd.DialContext(ctx, network, hostPort)
}

// judge refuses what is not public, and this host's own addresses, public or
// not. Those are read anew each time: they change.
func (d *dialer) judge(addr netip.Addr) error {
	if err := d.public.Check(addr); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	own, err := d.ownAddrs()
	if err != nil {
		return fmt.Errorf("%w: the host's own addresses are not known: %w", errRefused, err)
	}
	for _, a := range own {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(ipnet.IP); ok && policy.Embedded(ip) == policy.Embedded(addr) {
			return fmt.Errorf("%w: %s is an address of this host", errRefused, addr)
		}
	}
	return nil
}
