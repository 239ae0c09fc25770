package api

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// RateLimit is how much one address, and one principal, may ask.
type RateLimit struct {
	// RPS is how many requests per second it may send in the long run; zero: there
	// are no limits.
	RPS float64
	// Burst is how many at once after a pause.
	Burst int
	// TrustedProxies are those whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
}

// Wrong credentials are limited harder: by these parts of rate and burst.
const (
	guessRate  = 100
	guessBurst = 4
)

// limits counts requests. Nil, it limits nothing.
type limits struct {
	proxies   []netip.Prefix
	burst     int
	addresses *buckets[netip.Prefix]
	accounts  *buckets[string]
	guesses   *buckets[netip.Prefix]
}

func newLimits(c RateLimit) (*limits, error) {
	switch {
	case c.RPS == 0:
		return nil, nil //nolint:nilnil // nil limits nothing
	case c.RPS < 0 || math.IsNaN(c.RPS) || math.IsInf(c.RPS, 0) || c.Burst < 1:
		return nil, errors.New("api: a rate limit needs a rate above 0 and a burst of at least 1")
	}
	return &limits{
		proxies: c.TrustedProxies, burst: c.Burst,
		addresses: newBuckets[netip.Prefix](c.RPS, c.Burst),
		accounts:  newBuckets[string](c.RPS, c.Burst),
		guesses:   newBuckets[netip.Prefix](c.RPS/guessRate, max(1, c.Burst/guessBurst)),
	}, nil
}

// SetRateLimit puts another limit in place of the one that holds; counting
// begins anew. After an error nothing has changed.
func (a *API) SetRateLimit(c RateLimit) error {
	l, err := newLimits(c)
	if err == nil {
		a.limits.Store(l)
		a.proxies.Store(&c.TrustedProxies)
	}
	return err
}

// address counts a request for the address that it comes from.
func (l *limits) address(w http.ResponseWriter, r *http.Request) error {
	if l == nil {
		return nil
	}
	level := l.addresses.take(l.clientOf(r))
	l.tell(w.Header(), level)
	return tooFast(level, "this address")
}

// account counts it for whose credential it has. Of the two limits the headers
// tell the one that is nearer.
func (l *limits) account(w http.ResponseWriter, name string) error {
	if l == nil {
		return nil
	}
	level := l.accounts.take(name)
	h := w.Header()
	if told, err := strconv.Atoi(h.Get("X-Ratelimit-Remaining")); err != nil || level.remaining <= told {
		l.tell(h, level)
	}
	return tooFast(level, "this token")
}

// tell sets the headers: the burst, the requests left of it, and when all are
// there again, in Unix seconds.
func (l *limits) tell(h http.Header, level level) {
	h.Set("X-Ratelimit-Limit", strconv.Itoa(l.burst))
	h.Set("X-Ratelimit-Remaining", strconv.Itoa(level.remaining))
	h.Set("X-Ratelimit-Reset", strconv.FormatInt(time.Now().Add(level.full+time.Second-1).Unix(), 10))
}

func tooFast(level level, who string) error {
	if level.retry == 0 {
		return nil
	}
	return &stromboli.Error{
		Code: stromboli.RateLimited, RetryAfter: level.retry,
		Message: fmt.Sprintf("too many requests from %s; the next one is answered in %s", who, ceil(level.retry)),
	}
}

// mayGuess refuses to look at credentials from an address that has brought too
// many wrong ones.
func (l *limits) mayGuess(r *http.Request) error {
	if l == nil {
		return nil
	}
	level := l.guesses.look(l.clientOf(r))
	if level.retry == 0 {
		return nil
	}
	return &stromboli.Error{
		Code: stromboli.RateLimited, RetryAfter: level.retry,
		Message: fmt.Sprintf("too many wrong credentials from this address; the next one is looked at in %s", ceil(level.retry)),
	}
}

// guessed counts a wrong one.
func (l *limits) guessed(r *http.Request) {
	if l != nil {
		l.guesses.charge(l.clientOf(r))
	}
}

func ceil(d time.Duration) time.Duration { return (d + time.Second - 1).Truncate(time.Second) }

// clientOf is the network that counts as one client: where the connection
// comes from, or, behind trusted proxies, the last address that none of them
// has. What stands before that in X-Forwarded-For anybody could have written.
func (l *limits) clientOf(r *http.Request) netip.Prefix {
	client, ok := clientAddr(r, l.proxies)
	if !ok {
		return netip.Prefix{}
	}
	return network(client)
}

// clientAddr is that address itself.
func clientAddr(r *http.Request, proxies []netip.Prefix) (netip.Addr, bool) {
	client, ok := parseHop(r.RemoteAddr)
	if !ok {
		return client, false
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && trusted(proxies, client); i-- {
		hop, ok := parseHop(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		client = hop
	}
	return client, true
}

func trusted(proxies []netip.Prefix, addr netip.Addr) bool {
	for _, p := range proxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// parseHop takes an address with or without a port.
func parseHop(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return addr.Unmap().WithZone(""), err == nil
}
