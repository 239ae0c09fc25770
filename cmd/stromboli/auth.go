package main

import (
	"crypto/sha256"
	"fmt"

	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// ownName is the name of the token that a server which was started for one run
// gives its own caller.
const ownName = "stromboli-run"

// openAuth makes those who know callers, from configuration and the store.
func (s *server) openAuth() (err error) {
	s.auth, err = auth.New(auth.Config{
		Enabled: s.cfg.Auth.Enabled, Tokens: s.policies.tokens, Secret: s.policies.secret,
		Expiry: s.cfg.JWT.Expiry, RefreshExpiry: s.cfg.JWT.RefreshExpiry, Grants: s.store, Log: s.logs.Part("auth"),
	})
	if err != nil {
		return fmt.Errorf("authentication: %w", err)
	}
	if s.cfg.Closed() {
		s.log.Warn("the server is closed: it can be reached from outside and has no authentication, so it answers nothing but health; " +
			"set STROMBOLI_AUTH_ENABLED=true with STROMBOLI_API_TOKENS, or STROMBOLI_AUTH_ALLOW_PUBLIC=true if whoever reaches it may run agents")
	}
	return nil
}

// own is the API token of this process's own, where it has one.
func (s *server) own() []auth.Token {
	if s.ownToken == "" {
		return nil
	}
	return []auth.Token{{Name: ownName, Hash: sha256.Sum256([]byte(s.ownToken))}}
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
