package auth

import (
	"context"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tomblancdev/stromboli"
)

// Pair is what a login gets.
type Pair struct {
	Access, Refresh string
	Expiry          time.Duration // of the access token, from now
}

func errNoJWT() error {
	return stromboli.Errorf(stromboli.NotConfigured, "there are no JWTs here: the server has no STROMBOLI_JWT_SECRET")
}

// Issue exchanges an API token, or nothing while authentication is off, for a
// pair of JWTs that inherit tenant and scopes. clientID is a label.
func (a *Auth) Issue(ctx context.Context, by Identity, clientID string) (Pair, error) {
	switch {
	case !a.Issues():
		return Pair{}, errNoJWT()
	case by.grant != "":
		return Pair{}, stromboli.Errorf(stromboli.Forbidden, "a login takes an API token; an access token is renewed by /auth/refresh")
	case !validLabel(clientID):
		return Pair{}, stromboli.FieldError("client_id", "is required: up to 256 bytes without control characters")
	}
	scope := by.Scopes.String()
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{Subject: clientID, Audience: jwt.ClaimStrings{audience}},
		Grant:            "grant-" + stromboli.NewToken(), Tenant: by.Tenant, Scope: &scope,
	}
	if by.minter == "" {
		c.Audience = jwt.ClaimStrings{audienceOpen}
	}
	next := stromboli.NewToken()
	err := a.cfg.Grants.CreateGrant(ctx, stromboli.Grant{
		ID: c.Grant, MintedBy: by.minter, Refresh: next, Created: a.cfg.Now(), Expires: a.forgettable(),
	})
	if err != nil {
		return Pair{}, err
	}
	return a.pair(c, next)
}

// Refresh exchanges a refresh token for a new pair. It works once: whoever
// brings it a second time makes the login void, since one of the two has
// stolen it.
func (a *Auth) Refresh(ctx context.Context, token string) (Pair, error) {
	if !a.Issues() {
		return Pair{}, errNoJWT()
	}
	if token == "" {
		return Pair{}, stromboli.FieldError("refresh_token", "is required")
	}
	c, err := a.parse(token, useRefresh)
	if err != nil {
		return Pair{}, err
	}
	if c.Grant == "" {
		return Pair{}, wrong()
	}
	id, err := a.identity(ctx, c)
	if err != nil {
		return Pair{}, err
	}
	next := stromboli.NewToken()
	ok, err := a.cfg.Grants.RotateGrant(ctx, c.Grant, c.ID, next, a.forgettable())
	if err != nil {
		return Pair{}, err
	}
	if !ok {
		a.cfg.Log.WarnContext(ctx, "a refresh token was used twice; its login is revoked", "api_token", id.Account, "client_id", id.Name, "grant", c.Grant)
		return Pair{}, stromboli.Errorf(stromboli.Unauthenticated, "the refresh token has been used before, so its login has been revoked: log in again")
	}
	return a.pair(*c, next)
}

// Revoke makes a login void, access and refresh tokens alike; durable on return.
func (a *Auth) Revoke(ctx context.Context, id Identity) error {
	if !a.Issues() {
		return errNoJWT()
	}
	if id.grant == "" {
		return stromboli.Errorf(stromboli.Invalid, "an API token can't be logged out: it ends when it is taken out of the server's configuration")
	}
	return a.cfg.Grants.RevokeGrant(ctx, id.grant, id.Expires.Add(2*skew))
}

// forgettable is when nothing that is made now is valid any more.
func (a *Auth) forgettable() time.Time {
	return a.cfg.Now().Add(max(a.cfg.Expiry, a.cfg.RefreshExpiry) + 2*skew)
}

// pair signs both tokens of a login; refresh is the refresh token's id.
func (a *Auth) pair(c claims, refresh string) (Pair, error) {
	now := a.cfg.Now()
	sign := func(use, id string, life time.Duration) (string, error) {
		c.Use, c.ID = use, id
		c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now.Add(life))
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(a.cfg.Secret)
		if err != nil {
			return "", fmt.Errorf("signing a token: %w", err)
		}
		return token, nil
	}
	access, err := sign(useAccess, stromboli.NewToken(), a.cfg.Expiry)
	if err != nil {
		return Pair{}, err
	}
	next, err := sign(useRefresh, refresh, a.cfg.RefreshExpiry)
	return Pair{Access: access, Refresh: next, Expiry: a.cfg.Expiry}, err
}
