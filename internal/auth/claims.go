package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tomblancdev/stromboli"
)

// What a JWT is for, and for whom it was made.
const (
	useAccess  = "access"
	useRefresh = "refresh"

	audience     = "stromboli"
	audienceOpen = "stromboli-open" // made while authentication was off
)

// claims are a JWT's. Those that other programs make with the same secret have
// no grant.
type claims struct {
	jwt.RegisteredClaims
	Use    string  `json:"use"`
	Grant  string  `json:"grant,omitempty"`
	Tenant string  `json:"tenant,omitempty"` // the default one, if absent
	Scope  *string `json:"scope,omitempty"`  // names separated by spaces; all, if absent
}

func newParser(now func() time.Time) *jwt.Parser {
	return jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithStrictDecoding(),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(skew), jwt.WithTimeFunc(now))
}

// parse checks everything of a JWT that the store needn't be asked for.
func (a *Auth) parse(token, use string) (*claims, error) {
	if len(token) > maxCredential {
		return nil, wrong()
	}
	var c claims
	parsed, err := a.parser.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return a.cfg.Secret, nil })
	switch {
	case errors.Is(err, jwt.ErrTokenExpired): // told only of what was signed here
		return nil, stromboli.Errorf(stromboli.Unauthenticated, "the token has expired")
	case errors.Is(err, jwt.ErrTokenNotValidYet), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return nil, stromboli.Errorf(stromboli.Unauthenticated, "the token is not valid yet: do the clocks differ?")
	case err != nil: // whose text may quote the token
		return nil, wrong()
	}
	if _, ok := parsed.Header["crit"]; ok { // an extension that must be understood
		return nil, wrong()
	}
	ours := slices.Contains(c.Audience, audience)
	switch {
	case c.Use != use && (c.Use == useAccess || c.Use == useRefresh):
		return nil, stromboli.Errorf(stromboli.Unauthenticated, "this takes the %s token, not the %s token", use, c.Use)
	case !ours && slices.Contains(c.Audience, audienceOpen) && a.cfg.Enabled:
		return nil, stromboli.Errorf(stromboli.Unauthenticated, "the token was made while authentication was off: log in again")
	case c.Use != use, !ours && !slices.Contains(c.Audience, audienceOpen), c.Subject == "", c.ID == "":
		return nil, wrong()
	}
	return &c, nil
}

func (c *claims) open() bool { return !slices.Contains(c.Audience, audience) }

// identity turns checked claims into who asks, as the store and configuration
// have it now.
func (a *Auth) identity(ctx context.Context, c *claims) (Identity, error) {
	id := Identity{
		Principal: stromboli.Principal{Tenant: c.Tenant, Name: c.Subject, Scopes: c.scopes()},
		Expires:   c.ExpiresAt.Time, grant: c.Grant,
	}
	if id.Tenant == "" {
		id.Tenant = stromboli.DefaultTenant
	}
	if !validName(id.Tenant) || !validLabel(c.Subject) {
		return Identity{}, wrong()
	}
	id.Account = id.Tenant + "/" + c.Subject
	if c.Grant == "" { // another program's
		sum := sha256.Sum256([]byte(c.Subject + "\x00" + c.ID))
		id.grant = "jwt-" + hex.EncodeToString(sum[:])
	}
	g, err := a.cfg.Grants.GetGrant(ctx, id.grant)
	switch {
	case errors.Is(err, stromboli.NotFound) && c.Grant == "":
		return id, nil
	case errors.Is(err, stromboli.NotFound):
		return Identity{}, void()
	case err != nil:
		return Identity{}, err
	case g.Revoked:
		return Identity{}, void()
	case c.open() != (g.MintedBy == ""):
		return Identity{}, void()
	case c.open():
		return id, nil
	}
	// Its rights end with those of the API token that made it.
	tokens := *a.known.Load()
	at := slices.IndexFunc(tokens, func(t apiToken) bool { return t.minter == g.MintedBy })
	if at < 0 || tokens[at].tenant != id.Tenant {
		return Identity{}, void()
	}
	id.Scopes &= tokens[at].scopes
	id.Account = tokens[at].name
	return id, nil
}

// scopes are those that this version knows.
func (c *claims) scopes() stromboli.Scopes {
	if c.Scope == nil {
		return stromboli.AllScopes
	}
	var set stromboli.Scopes
	for name := range strings.FieldsSeq(*c.Scope) {
		if s, err := stromboli.ParseScope(name); err == nil {
			set |= s
		}
	}
	return set
}

// validLabel bounds what ends up in records and logs.
func validLabel(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return strings.TrimSpace(s) != "" && len(s) <= 256
}
