// Package auth finds out who asks: it knows static API tokens and JSON Web
// Tokens (JWTs), makes the latter, and makes them void.
//
// An API token is an operator's, named in configuration with a tenant and
// scopes; the package keeps its SHA-256 alone. A login exchanges one for a
// short-lived access token and a refresh token, which share a grant, the row
// that survives restarts. It promises that a JWT never has more rights than the
// API token that made it has now, and none once that is gone from
// configuration; that a refresh token works once, and that its second use makes
// the whole login void; and that what is void stays so, also after a restart.
//
// JWTs are signed with HS256 and no other algorithm is read, whatever a header
// says. No token, nor anything that is worth one, is in an error, a log or the
// store.
package auth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tomblancdev/stromboli"
)

const (
	// MinSecret is the least length of a JWT secret in bytes.
	MinSecret = 32
	// skew is how far the clocks of those who make and check JWTs may differ.
	skew = 30 * time.Second
	// maxCredential bounds what is looked at, in bytes.
	maxCredential = 8 << 10
)

// ErrWrong is in the chain of errors about credentials that may be a guess. An
// expired or revoked one is none.
var ErrWrong = errors.New("the credential is nobody's")

// Grants keeps logins. Errors but stromboli.NotFound tell that the store failed.
type Grants interface {
	// CreateGrant stores a login, durable on return.
	CreateGrant(ctx context.Context, g stromboli.Grant) error
	// GetGrant returns a login; stromboli.NotFound.
	GetGrant(ctx context.Context, id string) (stromboli.Grant, error)
	// RotateGrant makes to the refresh token that may be used next, in place of
	// from, and reports true; or, where from isn't the one, revokes the login and
	// reports false. Of two that ask at once one is told true.
	RotateGrant(ctx context.Context, id, from, to string, expires time.Time) (bool, error)
	// RevokeGrant makes void whatever bears the id, known or not, durably, until
	// expires at least.
	RevokeGrant(ctx context.Context, id string, expires time.Time) error
}

// Token is an API token as configured.
type Token struct {
	Name   string   // 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'; unique
	Tenant string   // the same characters; empty: the default one
	Scopes []string // empty: all
	Hash   [sha256.Size]byte
}

// Config makes an Auth. Log and Now may be nil.
type Config struct {
	// Enabled: requests need credentials. Otherwise JWTs can be made without,
	// which are void once it is true.
	Enabled bool
	Tokens  []Token
	// Secret signs JWTs; empty: there are none.
	Secret []byte
	// Expiry and RefreshExpiry are the lives of access and refresh tokens.
	Expiry, RefreshExpiry time.Duration
	Grants                Grants // needed with a Secret
	Log                   *slog.Logger
	Now                   func() time.Time
}

// Auth is safe for concurrent use.
type Auth struct {
	cfg    Config
	known  atomic.Pointer[[]apiToken]
	parser *jwt.Parser
}

type apiToken struct {
	name   string
	tenant string
	scopes stromboli.Scopes
	hash   [sha256.Size]byte
	minter string // what grants call it
}

// Identity is who asks, and what with.
type Identity struct {
	stromboli.Principal
	// Account is whose use a request is: the API token's name, also for the JWTs
	// that it made.
	Account string
	// Expires is when the credential ends; zero: it doesn't.
	Expires time.Time

	minter string // of an API token: what the grants made with it call it
	grant  string // of a JWT: what logging out makes void
}

// Check judges tokens and secret as New does, before there is a store.
func Check(cfg Config) error {
	_, err := newAuth(cfg)
	return err
}

// New checks the configuration and makes an Auth.
func New(cfg Config) (*Auth, error) {
	if len(cfg.Secret) > 0 && (cfg.Grants == nil || cfg.Expiry <= 0 || cfg.RefreshExpiry <= 0) {
		return nil, errors.New("auth: JWTs need a store and lifetimes")
	}
	return newAuth(cfg)
}

func newAuth(cfg Config) (*Auth, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Secret) > 0 && len(cfg.Secret) < MinSecret {
		return nil, fmt.Errorf("the JWT secret has %d bytes and needs %d: make one with `openssl rand -base64 32`", len(cfg.Secret), MinSecret)
	}
	a := &Auth{cfg: cfg, parser: newParser(cfg.Now)}
	return a, a.SetTokens(cfg.Tokens)
}

// SetTokens puts other API tokens in the place of those that are known. What was
// made with one that is gone is void from then on. After an error nothing has
// changed.
func (a *Auth) SetTokens(tokens []Token) error {
	if a.cfg.Enabled && len(a.cfg.Secret) == 0 && len(tokens) == 0 {
		return errors.New("authentication is on and nobody could log in: there is neither an API token nor a JWT secret")
	}
	known := make([]apiToken, 0, len(tokens))
	for _, t := range tokens {
		k, err := a.judge(t, known)
		if err != nil {
			return fmt.Errorf("API token %q: %w", t.Name, err)
		}
		known = append(known, k)
	}
	a.known.Store(&known)
	return nil
}

// judge makes a token known beside others.
func (a *Auth) judge(t Token, others []apiToken) (apiToken, error) {
	known := apiToken{name: t.Name, tenant: t.Tenant, hash: t.Hash, minter: a.minter(t.Hash)}
	if known.tenant == "" {
		known.tenant = stromboli.DefaultTenant
	}
	switch {
	case !validName(known.name):
		return known, errors.New("a name has 1 to 64 letters, digits, '.', '_' and '-'")
	case !validName(known.tenant):
		return known, errors.New("a tenant's name has 1 to 64 letters, digits, '.', '_' and '-'")
	}
	for _, name := range t.Scopes {
		s, err := stromboli.ParseScope(name)
		if err != nil {
			return known, err
		}
		known.scopes |= s
	}
	if len(t.Scopes) == 0 {
		known.scopes = stromboli.AllScopes
	}
	for _, other := range others {
		if other.name == known.name {
			return known, errors.New("another one has this name")
		}
		if other.hash == known.hash {
			return known, fmt.Errorf("it is the same token as %q", other.name)
		}
	}
	return known, nil
}

func validName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// minter names an API token in the store. Without the JWT secret a guess at the
// token can't be checked against it.
func (a *Auth) minter(hash [sha256.Size]byte) string {
	mac := hmac.New(sha256.New, a.cfg.Secret)
	mac.Write([]byte("stromboli api token\x00"))
	mac.Write(hash[:])
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// Issues reports whether there are JWTs.
func (a *Auth) Issues() bool { return len(a.cfg.Secret) > 0 }

// Anyone is who asks while authentication is off.
func Anyone() Identity {
	return Identity{Principal: stromboli.Principal{Tenant: stromboli.DefaultTenant, Scopes: stromboli.AllScopes}}
}

// Identify finds out whose credential it is: an API token, or an access token.
// Another is stromboli.Unauthenticated.
func (a *Auth) Identify(ctx context.Context, credential string) (Identity, error) {
	if credential == "" {
		return Identity{}, stromboli.Errorf(stromboli.Unauthenticated, "credentials are missing: send Authorization: Bearer, or X-API-Token")
	}
	if len(credential) > maxCredential {
		return Identity{}, wrong()
	}
	if t, ok := a.static(credential); ok {
		return Identity{
			Principal: stromboli.Principal{Tenant: t.tenant, Name: t.name, Scopes: t.scopes}, Account: t.name, minter: t.minter,
		}, nil
	}
	if !a.Issues() {
		return Identity{}, wrong()
	}
	c, err := a.parse(credential, useAccess)
	if err != nil {
		return Identity{}, err
	}
	return a.identity(ctx, c)
}

// static looks a token up, in the same time for every credential.
func (a *Auth) static(credential string) (apiToken, bool) {
	hash := sha256.Sum256([]byte(credential))
	found, tokens := -1, *a.known.Load()
	for i := range tokens {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], tokens[i].hash[:]), i, found)
	}
	if found < 0 {
		return apiToken{}, false
	}
	return tokens[found], true
}

// wrong is the answer to what may be a guess: it doesn't tell how near it was.
func wrong() error {
	return stromboli.Errorf(stromboli.Unauthenticated, "the credentials are wrong").WithCause(ErrWrong)
}

func void() error {
	return stromboli.Errorf(stromboli.Unauthenticated, "the login has been revoked: log in again")
}
