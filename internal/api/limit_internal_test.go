package api

import (
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestBuckets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuckets[string](2, 4) // one each 500 ms
		take := func(key string, want level) {
			t.Helper()
			if got := b.take(key); got != want {
				t.Errorf("%s: %+v, want %+v", key, got, want)
			}
		}
		const half = 500 * time.Millisecond
		for left := 3; left >= 0; left-- {
			take("a", level{remaining: left, full: time.Duration(4-left) * half})
		}
		for range 3 { // asking too early costs nothing
			take("a", level{full: 4 * half, retry: half})
		}
		take("b", level{remaining: 3, full: half})
		time.Sleep(half - time.Millisecond) //nolint:forbidigo // the bubble's clock
		take("a", level{full: 3*half + time.Millisecond, retry: time.Millisecond})
		time.Sleep(time.Millisecond) //nolint:forbidigo // the bubble's clock
		take("a", level{full: 4 * half})
		time.Sleep(time.Hour) //nolint:forbidigo // the bubble's clock
		take("a", level{remaining: 3, full: half})

		// A debt is remembered, and bounded.
		for range 100 {
			b.charge("c")
		}
		if got := b.look("c"); got.retry != 5*half || got.remaining != 0 {
			t.Errorf("%+v", got)
		}
		time.Sleep(5 * half) //nolint:forbidigo // the bubble's clock
		if got := b.look("c"); got.retry != 0 {
			t.Errorf("%+v", got)
		}
	})
}

// Nobody gets a fresh bucket by waiting for the others to be forgotten.
func TestBucketsForgetOnlyFullOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every, burst = time.Second, 5
		b := newBuckets[string](1, burst)
		answered := 0
		start := time.Now()
		for range 2000 {
			if b.take("a").retry == 0 {
				answered++
			}
			b.take("other")
			time.Sleep(70 * time.Millisecond) //nolint:forbidigo // the bubble's clock
		}
		if most := burst + int(time.Since(start)/every) + 1; answered > most || answered < most-2 {
			t.Errorf("%d answered, want %d", answered, most)
		}
		if n := len(b.young) + len(b.old); n > 4 {
			t.Errorf("%d entries of two keys", n)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A million addresses take what two generations take.
func TestMillionAddresses(t *testing.T) {
	l, err := newLimits(RateLimit{RPS: 10, Burst: 20})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	most := int64(0)
	addr := netip.MustParseAddr("2001:db8::").As16()
	for i := range 1_000_000 {
		addr[4], addr[5], addr[6], addr[7] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
		key := network(netip.AddrFrom16(addr))
		l.addresses.take(key)
		l.guesses.charge(key)
		if i%200_000 == 199_999 {
			most = max(most, heap()-before)
		}
	}
	n := len(l.addresses.young) + len(l.addresses.old) + len(l.guesses.young) + len(l.guesses.old)
	t.Logf("%d buckets, %.1f MiB", n, float64(most)/(1<<20))
	if n > 4*mostBuckets || most > 32<<20 {
		t.Errorf("%d buckets, %d bytes", n, most)
	}
	runtime.KeepAlive(l)
}

func TestClientOf(t *testing.T) {
	var proxies []netip.Prefix
	for _, p := range []string{"10.0.0.0/8", "fd00::/8", "192.0.2.7/32"} {
		proxies = append(proxies, netip.MustParsePrefix(p))
	}
	l := &limits{proxies: proxies}
	for _, c := range []struct {
		remote    string
		forwarded []string
		want      string
	}{
		{"198.51.100.1:5", nil, "198.51.100.1/32"},
		{"198.51.100.1:5", []string{"1.1.1.1"}, "198.51.100.1/32"}, // nobody's proxy
		{"[2001:db8:1:2:3:4:5:6]:5", nil, "2001:db8:1:2::/64"},
		{"[::ffff:198.51.100.1]:5", nil, "198.51.100.1/32"},
		{"10.1.1.1:5", nil, "10.1.1.1/32"},
		{"10.1.1.1:5", []string{"198.51.100.2"}, "198.51.100.2/32"},
		{"10.1.1.1:5", []string{"6.6.6.6, 198.51.100.2"}, "198.51.100.2/32"}, // what the client wrote itself
		{"10.1.1.1:5", []string{"6.6.6.6", "198.51.100.2 , 10.2.2.2"}, "198.51.100.2/32"},
		{"10.1.1.1:5", []string{"10.3.3.3, 10.2.2.2"}, "10.3.3.3/32"},
		{"10.1.1.1:5", []string{"198.51.100.2:1234"}, "198.51.100.2/32"},
		{"[fd00::1]:5", []string{"[2001:db8:1:2:3::4]:1234"}, "2001:db8:1:2::/64"},
		{"[::ffff:10.1.1.1]:5", []string{"::ffff:198.51.100.2"}, "198.51.100.2/32"},
		{"10.1.1.1:5", []string{"6.6.6.6, unknown"}, "10.1.1.1/32"},
		{"10.1.1.1:5", []string{"6.6.6.6, "}, "10.1.1.1/32"},
		{"192.0.2.7:5", []string{"fe80::1%eth0"}, "fe80::/64"},
		{"192.0.2.8:5", []string{"198.51.100.2"}, "192.0.2.8/32"},
		{"10.1.1.1:5", []string{strings.Repeat("10.1.1.1,", 7000) + "10.9.9.9"}, "10.1.1.1/32"},
		{"@", []string{"198.51.100.2"}, "invalid Prefix"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		for _, f := range c.forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		if got := l.clientOf(r).String(); got != c.want {
			t.Errorf("%s, %.60q: %s, want %s", c.remote, c.forwarded, got, c.want)
		}
	}
}

func BenchmarkLimit(b *testing.B) {
	l, err := newLimits(RateLimit{RPS: 1e6, Burst: 1000})
	if err != nil {
		b.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		_ = l.address(httptest.NewRecorder(), r)
	}
}
