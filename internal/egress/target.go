package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/tomblancdev/stromboli/internal/policy"
)

const (
	resolveLimit = 15 * time.Second
	dialLimit    = 20 * time.Second // per address
	dialStagger  = 250 * time.Millisecond
	maxAddresses = 32 // of one name
)

// errRefused is in the chain of every error that policy is the reason of.
var errRefused = errors.New("refused by the egress policy")

// refusedError says two things: the log learns the whole cause, the sandbox
// not what a name of the host's own network resolves to.
type refusedError struct {
	shown string
	cause error
}

// refuse makes a refusedError whose cause may be shown.
func refuse(cause error) *refusedError { return &refusedError{shown: cause.Error(), cause: cause} }

// Error implements error, for the log.
func (e *refusedError) Error() string { return errRefused.Error() + ": " + e.cause.Error() }

// Unwrap gives the cause.
func (e *refusedError) Unwrap() error { return e.cause }

// Is makes every refusedError an errRefused.
func (e *refusedError) Is(target error) bool { return target == errRefused }

// dialer connects to targets that the address policy permits.
type dialer struct {
	policy    *policy.AddressPolicy
	resolve   func(ctx context.Context, name string) ([]netip.Addr, error)
	ownAddrs  func() ([]netip.Addr, error)
	transport net.Dialer
}

func newDialer() *dialer {
	return &dialer{
		policy: policy.NewAddressPolicy(),
		resolve: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
		ownAddrs:  interfaceAddrs,
		transport: net.Dialer{Timeout: dialLimit, KeepAlive: 30 * time.Second},
	}
}

// dial connects to a target. A name is resolved once, every address is judged,
// one that is refused refuses the whole name, and only judged addresses are
// dialled: a second look-up can't put another one in between.
func (d *dialer) dial(ctx context.Context, to target, allow allowList, r *rules) (*net.TCPConn, error) {
	addrs := []netip.Addr{to.addr}
	if to.name != "" {
		var err error
		if addrs, err = d.lookup(ctx, to.name); err != nil {
			return nil, err
		}
	}
	for _, a := range addrs {
		if err := r.judgeAddr(a, to.port); err != nil {
			return nil, err
		}
	}
	if !allow.named(to.name, to.port) {
		if err := d.judge(addrs, to.port, allow); err != nil {
			if to.name != "" {
				return nil, &refusedError{shown: to.name + " has an address that is refused", cause: fmt.Errorf("%s: %w", to.name, err)}
			}
			return nil, refuse(err)
		}
	}
	return d.connect(ctx, addrs, to.port)
}

func (d *dialer) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	addrs, err := d.resolve(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: no address", name)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, nil
}

// judge refuses if one of the addresses is refused. The host's own addresses
// are read anew each time: they change, and a stale list would be a hole.
func (d *dialer) judge(addrs []netip.Addr, port uint16, allow allowList) error {
	var own map[netip.Addr]bool
	for _, a := range addrs {
		if allow.addressed(a, port) {
			continue
		}
		if err := d.policy.Check(a); err != nil {
			return err //nolint:wrapcheck // says all
		}
		if own == nil {
			list, err := d.ownAddrs()
			if err != nil {
				return fmt.Errorf("the host's own addresses are not known: %w", err)
			}
			own = make(map[netip.Addr]bool, len(list))
			for _, o := range list {
				own[policy.Embedded(o)] = true
			}
		}
		if own[policy.Embedded(a)] {
			return fmt.Errorf("%s is an address of this host", a)
		}
	}
	return nil
}

func interfaceAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		ipnet, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ipnet.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, nil
}

// connect dials the addresses in order, the next one after a failure or a
// quarter of a second, and keeps the first that answers.
func (d *dialer) connect(ctx context.Context, addrs []netip.Addr, port uint16) (*net.TCPConn, error) {
	addrs = addrs[:min(len(addrs), maxAddresses)]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(addrs))
	var firstErr error
	for started, failed := 0, 0; ; {
		var stagger <-chan time.Time
		if started < len(addrs) {
			addr := netip.AddrPortFrom(addrs[started], port).String()
			started++
			go func() { // ends with its dial, whose result the buffer takes
				conn, err := d.transport.DialContext(ctx, "tcp", addr)
				results <- result{conn, err}
			}()
			stagger = time.After(dialStagger)
		}
		select {
		case <-stagger:
		case r := <-results:
			if r.err == nil {
				cancel()
				for range started - failed - 1 { // the others end at once now
					if late := <-results; late.conn != nil {
						_ = late.conn.Close()
					}
				}
				tcp, ok := r.conn.(*net.TCPConn)
				if !ok {
					_ = r.conn.Close()
					return nil, fmt.Errorf("dial: not a TCP connection")
				}
				return tcp, nil
			}
			failed++
			if firstErr == nil {
				firstErr = r.err
			}
			if failed == len(addrs) {
				return nil, fmt.Errorf("dial: %w", firstErr)
			}
		}
	}
}
