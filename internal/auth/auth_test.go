package auth_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/auth"
	"github.com/tomblancdev/stromboli/internal/store"
)

const (
	secret = "a secret of at least 32 bytes, for tests"
	root   = "the token of the default tenant"
	ci     = "the token of another"
)

func hashOf(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

func tokens() []auth.Token {
	return []auth.Token{
		{Name: "root", Hash: hashOf(root)},
		{Name: "ci", Tenant: "team", Scopes: []string{"run", "read"}, Hash: hashOf(ci)},
	}
}

// bench is an Auth on a real store, with a clock that the test moves.
type bench struct {
	*auth.Auth
	t    *testing.T
	path string
	st   *store.Store
	cfg  auth.Config
	now  time.Time
}

func open(t *testing.T, change ...func(*auth.Config)) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "db"), now: time.Unix(1_800_000_000, 0)}
	b.cfg = auth.Config{
		Enabled: true, Tokens: tokens(), Secret: []byte(secret), Expiry: time.Hour, RefreshExpiry: 24 * time.Hour,
		Now: func() time.Time { return b.now },
	}
	for _, c := range change {
		c(&b.cfg)
	}
	b.restart()
	t.Cleanup(func() { _ = b.st.Close() })
	return b
}

// restart is another server on the same database, with other settings perhaps.
func (b *bench) restart(change ...func(*auth.Config)) {
	b.t.Helper()
	if b.st != nil {
		if err := b.st.Close(); err != nil {
			b.t.Fatal(err)
		}
	}
	var err error
	if b.st, err = store.Open(b.t.Context(), store.Config{Path: b.path, Now: b.cfg.Now}); err != nil {
		b.t.Fatal(err)
	}
	b.cfg.Grants = b.st
	for _, c := range change {
		c(&b.cfg)
	}
	if b.Auth, err = auth.New(b.cfg); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) ctx() context.Context { return b.t.Context() }

func (b *bench) login(token, client string) auth.Pair {
	b.t.Helper()
	id := auth.Anyone()
	if token != "" {
		var err error
		if id, err = b.Identify(b.ctx(), token); err != nil {
			b.t.Fatal(err)
		}
	}
	p, err := b.Issue(b.ctx(), id, client)
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

func (b *bench) good(what, token string) auth.Identity {
	b.t.Helper()
	id, err := b.Identify(b.ctx(), token)
	if err != nil {
		b.t.Errorf("%s: %v", what, err)
	}
	return id
}

// bad checks that a token is refused, with words about why.
func (b *bench) bad(what, token, why string) {
	b.t.Helper()
	id, err := b.Identify(b.ctx(), token)
	b.refused(what, err, why)
	if id != (auth.Identity{}) {
		b.t.Errorf("%s: refused, and yet %+v", what, id)
	}
}

func (b *bench) refused(what string, err error, why string) {
	b.t.Helper()
	if !errors.Is(err, stromboli.Unauthenticated) || !strings.Contains(err.Error(), why) {
		b.t.Errorf("%s: %v, want %q", what, err, why)
	}
	if guess := errors.Is(err, auth.ErrWrong); guess != (why == "wrong") {
		b.t.Errorf("%s: is a guess: %v", what, guess)
	}
}

func TestNew(t *testing.T) {
	sound := func() auth.Config {
		return auth.Config{Enabled: true, Tokens: tokens(), Secret: []byte(secret), Expiry: time.Hour, RefreshExpiry: time.Hour, Grants: &store.Store{}}
	}
	if _, err := auth.New(sound()); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*auth.Config){
		"neither an API token nor a JWT secret": func(c *auth.Config) { c.Tokens, c.Secret = nil, nil },
		"openssl rand":                          func(c *auth.Config) { c.Secret = []byte(strings.Repeat("s", 31)) },
		"store":                                 func(c *auth.Config) { c.Grants = nil },
		"lifetimes":                             func(c *auth.Config) { c.Expiry = 0 },
		`"wrte" is no scope`:                    func(c *auth.Config) { c.Tokens[0].Scopes = []string{"wrte"} },
		"another one has this name":             func(c *auth.Config) { c.Tokens[1].Name = "root" },
		`the same token as "root"`:              func(c *auth.Config) { c.Tokens[1].Hash = c.Tokens[0].Hash },
		"a name has":                            func(c *auth.Config) { c.Tokens[1].Name = "a b" },
		"a tenant's name has":                   func(c *auth.Config) { c.Tokens[1].Tenant = "a/b" },
	} {
		c := sound()
		change(&c)
		if _, err := auth.New(c); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	off := auth.Config{}
	if a, err := auth.New(off); err != nil || a.Issues() {
		t.Errorf("off: %v", err)
	}
}

func TestAPITokens(t *testing.T) {
	b := open(t)
	all := stromboli.AllScopes
	for token, want := range map[string]stromboli.Principal{
		root: {Tenant: "default", Name: "root", Scopes: all},
		ci:   {Tenant: "team", Name: "ci", Scopes: stromboli.ScopeRun | stromboli.ScopeRead},
	} {
		if id := b.good(token, token); id.Principal != want || id.Account != want.Name || !id.Expires.IsZero() {
			t.Errorf("%+v", id)
		}
	}
	b.bad("none", "", "missing")
	for _, token := range []string{"x", root + " ", root[:len(root)-1], strings.ToUpper(root), strings.Repeat("x", 9000), "a.b.c", "\x00"} {
		b.bad(token, token, "wrong")
	}
	if err := b.Revoke(b.ctx(), b.good("root", root)); !errors.Is(err, stromboli.Invalid) {
		t.Errorf("an API token was logged out: %v", err)
	}
	b.restart(func(c *auth.Config) { c.Secret = nil })
	b.good("without JWTs", root)
	b.bad("without JWTs", "a.b.c", "wrong")
	if _, err := b.Issue(b.ctx(), auth.Anyone(), "x"); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("%v", err)
	}
	if _, err := b.Refresh(b.ctx(), "x"); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("%v", err)
	}
	if err := b.Revoke(b.ctx(), auth.Anyone()); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("%v", err)
	}
}

// A login inherits from its API token, and each refresh token works once.
func TestLogin(t *testing.T) {
	b := open(t)
	first := b.login(ci, "my laptop")
	id := b.good("access", first.Access)
	if want := (stromboli.Principal{Tenant: "team", Name: "my laptop", Scopes: stromboli.ScopeRun | stromboli.ScopeRead}); id.Principal != want ||
		id.Account != "ci" || !id.Expires.Equal(b.now.Add(time.Hour)) || first.Expiry != time.Hour {
		t.Errorf("%+v", id)
	}
	b.bad("a refresh token for access", first.Refresh, "takes the access token")
	_, err := b.Refresh(b.ctx(), first.Access)
	b.refused("an access token for refresh", err, "takes the refresh token")
	_, err = b.Refresh(b.ctx(), ci)
	b.refused("an API token for refresh", err, "wrong")
	if _, err := b.Issue(b.ctx(), id, "x"); !errors.Is(err, stromboli.Forbidden) {
		t.Errorf("an access token made a login: %v", err)
	}
	for _, label := range []string{"", " ", "a\nb", strings.Repeat("x", 257), "\xff"} {
		if _, err := b.Issue(b.ctx(), b.good("ci", ci), label); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("client_id %q: %v", label, err)
		}
	}

	b.now = b.now.Add(23 * time.Hour) // the access token has ended
	b.bad("the old access token", first.Access, "expired")
	second, err := b.Refresh(b.ctx(), first.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.good("second", second.Access); got.Principal != id.Principal || got.Account != "ci" {
		t.Errorf("%+v", got)
	}
	b.now = b.now.Add(20 * time.Hour)
	b.restart()
	third, err := b.Refresh(b.ctx(), second.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	other := b.login(ci, "my laptop")

	// Somebody brings the second one again.
	_, err = b.Refresh(b.ctx(), second.Refresh)
	b.refused("twice", err, "used before")
	b.bad("after that", third.Access, "revoked")
	_, err = b.Refresh(b.ctx(), third.Refresh)
	b.refused("after that", err, "revoked")
	b.good("another login", other.Access)
	b.restart()
	b.bad("after a restart", third.Access, "revoked")

	b.now = b.now.Add(24*time.Hour + time.Minute)
	_, err = b.Refresh(b.ctx(), other.Refresh)
	b.refused("an old refresh token", err, "expired")
}

func TestConcurrentRefresh(t *testing.T) {
	b := open(t)
	p := b.login(root, "x")
	var mu sync.Mutex
	var won []auth.Pair
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			next, err := b.Refresh(b.ctx(), p.Refresh)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, next)
			} else if !errors.Is(err, stromboli.Unauthenticated) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of 8 got a pair", len(won))
	}
	b.bad("the winner's", won[0].Access, "revoked")
}

func TestLogout(t *testing.T) {
	b := open(t)
	p, other := b.login(root, "x"), b.login(root, "x")
	if err := b.Revoke(b.ctx(), b.good("before", p.Access)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b.bad("logged out", p.Access, "revoked")
		_, err := b.Refresh(b.ctx(), p.Refresh)
		b.refused("logged out", err, "revoked")
		b.good("another login", other.Access)
		b.restart()
	}
	b.now = b.now.Add(25 * time.Hour)
	if n, err := b.st.DeleteExpiredGrants(b.ctx()); err != nil || n != 2 {
		t.Errorf("%d rows forgotten, %v", n, err)
	}
	b.now = b.now.Add(-25 * time.Hour) // even if the clock is set back
	b.bad("forgotten", p.Access, "revoked")
}

// A JWT never has more than the API token that made it has now.
func TestAPITokenChanges(t *testing.T) {
	b := open(t)
	p := b.login(root, "x")
	b.restart(func(c *auth.Config) { c.Tokens[0].Scopes = []string{"read"} })
	if id := b.good("narrowed", p.Access); id.Scopes != stromboli.ScopeRead {
		t.Errorf("%+v", id)
	}
	b.restart(func(c *auth.Config) { c.Tokens[0].Tenant = "team" })
	b.bad("another tenant's", p.Access, "revoked")
	b.restart(func(c *auth.Config) { c.Tokens = c.Tokens[1:] })
	b.bad("gone", p.Access, "revoked")
	_, err := b.Refresh(b.ctx(), p.Refresh)
	b.refused("gone", err, "revoked")
	b.restart(func(c *auth.Config) { c.Tokens = tokens(); c.Tokens[0].Name = "renamed" })
	b.good("back, under another name", p.Access)
	b.restart(func(c *auth.Config) { c.Secret = []byte(strings.ToUpper(secret)) })
	b.bad("another secret", p.Access, "wrong")
}

// What was made while authentication was off is void once it is on; the other
// way round it isn't.
func TestOffAndOn(t *testing.T) {
	b := open(t)
	real := b.login(ci, "x")
	b.restart(func(c *auth.Config) { c.Enabled = false })
	made := b.login("", "x")
	b.good("off", made.Access)
	if id := b.good("off, the real one", real.Access); id.Tenant != "team" {
		t.Errorf("%+v", id)
	}
	next, err := b.Refresh(b.ctx(), made.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	b.restart(func(c *auth.Config) { c.Enabled = true })
	b.bad("on", made.Access, "while authentication was off")
	_, err = b.Refresh(b.ctx(), next.Refresh)
	b.refused("on", err, "while authentication was off")
	b.good("on, the real one", real.Access)
}

// broken is a store that fails.
type broken struct{ auth.Grants }

func (broken) GetGrant(context.Context, string) (stromboli.Grant, error) {
	return stromboli.Grant{}, stromboli.Errorf(stromboli.StorageBusy, "busy")
}

// A store that fails lets nobody in, and isn't the caller's fault.
func TestStoreFails(t *testing.T) {
	b := open(t)
	p := b.login(root, "x")
	b.restart(func(c *auth.Config) { c.Grants = broken{} })
	if _, err := b.Identify(b.ctx(), p.Access); !errors.Is(err, stromboli.StorageBusy) {
		t.Error(err)
	}
	if _, err := b.Refresh(b.ctx(), p.Refresh); !errors.Is(err, stromboli.StorageBusy) {
		t.Error(err)
	}
	b.good("an API token", root)
}

// Nothing that is worth a token is in an error.
func TestErrorsHide(t *testing.T) {
	b := open(t)
	p := b.login(root, "x")
	for _, token := range []string{"guessed-token", p.Refresh, p.Access + "x", p.Access[:40]} {
		_, err := b.Identify(b.ctx(), token)
		if err == nil || strings.Contains(fmt.Sprintf("%+v %#v", err, err), token) {
			t.Errorf("%v shows the token", err)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	a, err := auth.New(auth.Config{Enabled: true, Tokens: tokens(), Secret: []byte(secret), Expiry: time.Hour, RefreshExpiry: time.Hour, Grants: broken{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.")
	f.Fuzz(func(t *testing.T, token string) {
		if id, err := a.Identify(t.Context(), token); err == nil && token != root && token != ci {
			t.Errorf("%q is %+v", token, id)
		}
	})
}
