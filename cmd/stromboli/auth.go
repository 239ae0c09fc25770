package main

import (
	"crypto/sha256"
	"fmt"
	"net"

	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// ownName is the name of the token that a server which was started for one run
// gives its own caller.
const ownName = "stromboli-run"

// openAuth makes those who know callers, from configuration and the store.
func (s *server) openAuth() error {
	known, err := s.cfg.LoadAuth(s.environ)
	if err != nil {
		return err
	}
	tokens := make([]auth.Token, 0, len(known.Tokens)+1)
	for _, t := range known.Tokens {
		tokens = append(tokens, auth.Token{Name: t.Name, Tenant: t.Tenant, Scopes: t.Scopes, Hash: t.Hash})
		if t.Weak && s.cfg.Auth.Enabled {
			s.log.Warn("an API token is short enough to be guessed; make one with `openssl rand -hex 32`", "token", t.Name)
		}
	}
	if s.ownToken != "" {
		tokens = append(tokens, auth.Token{Name: ownName, Hash: sha256.Sum256([]byte(s.ownToken))})
	}
	s.auth, err = auth.New(auth.Config{
		Enabled: s.cfg.Auth.Enabled, Tokens: tokens, Secret: []byte(known.JWT),
		Expiry: s.cfg.JWT.Expiry, RefreshExpiry: s.cfg.JWT.RefreshExpiry, Grants: s.store, Log: s.logs.Part("auth"),
	})
	if err != nil {
		return fmt.Errorf("authentication (STROMBOLI_AUTH_ENABLED, STROMBOLI_API_TOKENS, STROMBOLI_API_TOKENS_FILE, STROMBOLI_JWT_SECRET): %w; see docs/AUTHENTICATION.md", err)
	}
	switch {
	case s.cfg.Closed():
		s.log.Warn("the server is closed: it can be reached from outside and has no authentication, so it answers nothing but health; " +
			"set STROMBOLI_AUTH_ENABLED=true with STROMBOLI_API_TOKENS, or STROMBOLI_AUTH_ALLOW_PUBLIC=true if whoever reaches it may run agents")
	case !s.cfg.Auth.Enabled && len(known.Tokens) > 0:
		s.log.Warn("API tokens are configured and nobody needs one: authentication is off; set STROMBOLI_AUTH_ENABLED=true")
	}
	return nil
}

// access is who may call.
func (s *server) access() api.Access {
	switch {
	case s.cfg.Auth.Enabled:
		return api.AccessAuth
	case s.cfg.Closed():
		return api.AccessClosed
	}
	return api.AccessOpen
}

// rateLimit is how much callers may ask.
func (s *server) rateLimit() (api.RateLimit, error) {
	c := s.cfg.RateLimit
	if !c.Enabled {
		return api.RateLimit{}, nil
	}
	proxies, err := c.Proxies()
	return api.RateLimit{RPS: c.RPS, Burst: c.Burst, TrustedProxies: proxies}, err
}

// urlOf is where this host reaches a listener.
func urlOf(addr net.Addr) string {
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("http://127.0.0.1:%d", tcp.Port)
	}
	return "http://" + addr.String()
}
