package api_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/api"
)

func limited(rps float64, burst int) func(*api.Config) {
	return func(c *api.Config) {
		c.RateLimit = api.RateLimit{RPS: rps, Burst: burst, TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	}
}

func from(address string) string { return "X-Forwarded-For: " + address }

// wantLimit checks the headers that every answer carries.
func (s *server) wantLimit(got answer, limit, remaining int) {
	s.t.Helper()
	reset, err := strconv.ParseInt(got.header.Get("X-RateLimit-Reset"), 10, 64)
	if got.header.Get("X-RateLimit-Limit") != strconv.Itoa(limit) || got.header.Get("X-RateLimit-Remaining") != strconv.Itoa(remaining) ||
		err != nil || reset < time.Now().Unix() || reset > time.Now().Add(time.Hour).Unix() {
		s.t.Errorf("%d with %v, want %d of %d left", got.status, got.header, remaining, limit)
	}
}

func (s *server) wantTooFast(got answer) {
	s.t.Helper()
	s.want(429, "rate_limited", got)
	after, err := strconv.Atoi(got.header.Get("Retry-After"))
	if err != nil || after < 1 || after > 1000 || got.body["request_id"] == "" {
		s.t.Errorf("%v %s", got.header, got.raw)
	}
}

func TestRateLimit(t *testing.T) {
	s := start(t, limited(0.01, 4))
	for i, call := range []struct {
		method, path string
		status       int
	}{{"GET", "/jobs", 200}, {"GET", "/nothing", 404}, {"PUT", "/jobs", 405}, {"POST", "/run", 400}} {
		got := s.ask(call.method, call.path, "", from("198.51.100.1"))
		if got.status != call.status {
			t.Errorf("%s %s: %d", call.method, call.path, got.status)
		}
		s.wantLimit(got, 4, 3-i)
	}
	for range 2 {
		got := s.ask("POST", "/run", `{"prompt":"p"}`, from("198.51.100.1"))
		s.wantTooFast(got)
		s.wantLimit(got, 4, 0)
		if got.body["status"] != "error" {
			t.Errorf("%s", got.raw)
		}
	}
	if len(s.fake.Submissions()) > 0 {
		t.Error("a run was started")
	}
	for _, path := range []string{"/health", "/livez", "/readyz"} {
		if got := s.ask("GET", path, "", from("198.51.100.1")); got.status != 200 || got.header.Get("X-RateLimit-Limit") != "" {
			t.Errorf("%s: %d %v", path, got.status, got.header)
		}
	}
	s.wantLimit(s.ask("GET", "/jobs", "", from("198.51.100.2")), 4, 3)
	// One customer has a whole /64.
	s.wantLimit(s.ask("GET", "/jobs", "", from("2001:db8::1")), 4, 3)
	s.wantLimit(s.ask("GET", "/jobs", "", from("2001:db8::ffff:1")), 4, 2)
	s.wantLimit(s.ask("GET", "/jobs", "", from("2001:db8:0:1::1")), 4, 3)
	// Without limits there are no headers.
	free := start(t)
	if got := free.ask("GET", "/jobs", ""); got.header.Get("X-RateLimit-Limit") != "" {
		t.Errorf("%v", got.header)
	}
}

// A token is limited wherever its requests come from, and so are the JWTs that
// it made, whatever they are called.
func TestRateLimitOfToken(t *testing.T) {
	s := start(t, limited(0.01, 4), withAuth(t, true, jwtSecret))
	one, _ := s.login("one", bearer("root"), from("198.51.100.1"))
	two, _ := s.login("two", bearer("root"), from("198.51.100.2"))
	s.wantLimit(s.want(200, "", s.ask("GET", "/jobs", "", bearer(one), from("198.51.100.3"))), 4, 1)
	s.wantLimit(s.want(200, "", s.ask("GET", "/jobs", "", bearer(two), from("198.51.100.4"))), 4, 0)
	got := s.ask("GET", "/jobs", "", bearer("root"), from("198.51.100.5"))
	s.wantTooFast(got)
	s.wantLimit(got, 4, 0)
	s.wantLimit(s.want(200, "", s.ask("GET", "/jobs", "", bearer("team"), from("198.51.100.5"))), 4, 2)
}

// After too many wrong credentials none is looked at from that address, the
// right one neither.
func TestWrongCredentials(t *testing.T) {
	s := start(t, limited(20, 20), withAuth(t, true, jwtSecret))
	const attacker = "198.51.100.1"
	_, refresh := s.login("x", bearer("root"), from("198.51.100.2"))
	for i := range 5 { // a quarter of the burst
		if i%2 == 0 {
			s.want(401, "unauthenticated", s.ask("GET", "/jobs", "", bearer("guess-"+strconv.Itoa(i)), from(attacker)))
		} else {
			s.want(401, "unauthenticated", s.ask("POST", "/auth/refresh", `{"refresh_token":"guess"}`, from(attacker)))
		}
	}
	s.wantTooFast(s.ask("GET", "/jobs", "", bearer("guess"), from(attacker)))
	s.wantTooFast(s.ask("GET", "/jobs", "", bearer("root"), from(attacker)))
	s.wantTooFast(s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`, from(attacker)))
	s.want(200, "", s.ask("GET", "/health", "", from(attacker)))
	s.want(200, "", s.ask("GET", "/jobs", "", bearer("root"), from("198.51.100.2")))
	// None, or one that has ended, is no guess.
	for range 8 {
		s.want(401, "unauthenticated", s.ask("GET", "/jobs", "", from("198.51.100.3")))
		s.want(401, "unauthenticated", s.ask("GET", "/jobs", "", bearer(refresh), from("198.51.100.3")))
	}
	s.want(200, "", s.ask("GET", "/jobs", "", bearer("root"), from("198.51.100.3")))
}
