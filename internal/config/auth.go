package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Auth is who may call.
type Auth struct {
	// Enabled: every request but those for health needs credentials. It takes an
	// API token or a JWT secret.
	Enabled bool `env:"ENABLED"`
	// AllowPublic permits another than a loopback address without auth:
	// whoever reaches the address can then run agents.
	AllowPublic bool `env:"ALLOW_PUBLIC"`
	// StartClosed lets a server start that the rule above refuses; it then
	// answers nothing but health, and 403 that names the ways out. The container
	// image sets it: nobody sees why a container doesn't start.
	StartClosed bool `env:"START_CLOSED"`
}

// JWT is the tokens that callers get for an API token.
type JWT struct {
	// Secret signs them, at least 32 bytes (openssl rand -base64 32); without it
	// there are none, and /auth/* answer 503.
	Secret Secret `env:"SECRET"`
	// Expiry is an access token's.
	Expiry time.Duration `env:"EXPIRY" envDefault:"24h"`
	// RefreshExpiry is a refresh token's: how long a login lasts unused.
	RefreshExpiry time.Duration `env:"REFRESH_EXPIRY" envDefault:"168h"`
}

// RateLimit is how much one address, and one API token, may ask.
type RateLimit struct {
	// Enabled: requests are limited.
	Enabled bool `env:"ENABLED" reload:"true"`
	// RPS is the requests per second in the long run.
	RPS float64 `env:"RPS" envDefault:"10" reload:"true"`
	// Burst is how many may come at once after a pause.
	Burst int `env:"BURST" envDefault:"20" reload:"true"`
	// TrustedProxies are addresses and networks of proxies whose
	// X-Forwarded-For is believed, comma-separated.
	TrustedProxies []string `env:"TRUSTED_PROXIES" reload:"true"`
}

// Bounds of rates: beyond them nothing is limited, or nothing answered.
const (
	minRate, maxRate = 0.01, 1_000_000
	maxBurst         = 100_000
)

// Closed reports whether a server must answer nothing but health: strangers
// reach it, and it knows nobody.
func (c *Config) Closed() bool {
	return !c.Auth.Enabled && !c.Auth.AllowPublic && c.strangers()
}

func (c *Config) validateAuth() error {
	var p problems
	if c.Closed() && !c.Auth.StartClosed {
		p = append(p, fmt.Errorf("STROMBOLI_SERVER_ADDRESS: %s is not a loopback address, and whoever reaches it could run agents here: "+
			"use 127.0.0.1, set STROMBOLI_AUTH_ENABLED=true, or set STROMBOLI_AUTH_ALLOW_PUBLIC=true if that is what you want", c.Server.Address))
	}
	r := c.RateLimit
	p.check(c.JWT.Expiry < time.Second, "STROMBOLI_JWT_EXPIRY", "must be at least 1s")
	p.check(c.JWT.RefreshExpiry < time.Second, "STROMBOLI_JWT_REFRESH_EXPIRY", "must be at least 1s")
	// The comparison is false for NaN too.
	p.check(!(r.RPS >= minRate && r.RPS <= maxRate), "STROMBOLI_RATE_LIMIT_RPS", "must be a number from %v to %v", minRate, maxRate)
	p.check(r.Burst < 1 || r.Burst > maxBurst, "STROMBOLI_RATE_LIMIT_BURST", "must be an integer from 1 to %d", maxBurst)
	_, err := c.RateLimit.Proxies()
	return errors.Join(append(p, err)...)
}

// Proxies are the trusted proxies' networks.
func (r RateLimit) Proxies() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range r.TrustedProxies {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			addr, aerr := netip.ParseAddr(strings.TrimSpace(s))
			if aerr != nil || addr.Zone() != "" {
				return nil, fmt.Errorf("STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES: %q is neither an address nor a network such as 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES: %q: write an IPv4 network as one", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// APIToken is an API token; of itself there is only the hash.
type APIToken struct {
	Name   string
	Tenant string   // empty: the default one
	Scopes []string // empty: all
	Hash   [sha256.Size]byte
	// Weak: it is short enough to be guessed.
	Weak bool
}

// weakToken is the length in bytes below which a token is weak.
const weakToken = 20

// AuthSecrets is what callers are known by.
type AuthSecrets struct {
	Tokens []APIToken
	JWT    Secret // signs JWTs; empty: there are none
}

// LoadAuth reads the API tokens, of STROMBOLI_API_TOKENS and of the file that
// STROMBOLI_API_TOKENS_FILE names, and STROMBOLI_JWT_SECRET. No error shows any
// of them.
func (c *Config) LoadAuth() (AuthSecrets, error) {
	out := AuthSecrets{JWT: Secret(strings.TrimSpace(string(c.JWT.Secret)))}
	if list := strings.TrimSpace(string(c.APITokens)); list != "" {
		for i, token := range strings.Split(list, ",") {
			token = strings.TrimSpace(token)
			if err := checkToken(token); err != nil {
				return AuthSecrets{}, fmt.Errorf("STROMBOLI_API_TOKENS: number %d: %w", i+1, err)
			}
			out.Tokens = append(out.Tokens, APIToken{
				Name: fmt.Sprintf("token-%d", i+1), Hash: sha256.Sum256([]byte(token)), Weak: len(token) < weakToken,
			})
		}
	}
	if path := c.APITokensFile; path != "" {
		more, err := readTokens(path)
		if err != nil {
			return AuthSecrets{}, fmt.Errorf("STROMBOLI_API_TOKENS_FILE: %s: %w", path, err)
		}
		out.Tokens = append(out.Tokens, more...)
	}
	return out, nil
}

func checkToken(s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b >= 0x7f || b == ',' {
			return errors.New("a token has visible ASCII characters, without spaces and commas")
		}
	}
	if len(s) > 4096 {
		return errors.New("a token has at most 4096 characters")
	}
	return nil
}

// tokenEntry is an API token in its file.
type tokenEntry struct {
	Name   string    `json:"name"`
	Token  string    `json:"token"`
	SHA256 string    `json:"sha256"`
	Tenant string    `json:"tenant"`
	Scopes *[]string `json:"scopes"`
}

func readTokens(path string) ([]APIToken, error) {
	var file struct {
		Tokens []tokenEntry `json:"tokens"`
	}
	if err := readPrivate(path, &file); err != nil {
		return nil, err
	}
	if len(file.Tokens) == 0 {
		return nil, errors.New(`it names no token: {"tokens":[{"name":"ci","token":"…","tenant":"default","scopes":["run","read"]}]}`)
	}
	out := make([]APIToken, 0, len(file.Tokens))
	for i, e := range file.Tokens {
		t, err := e.parse()
		if err != nil {
			return nil, fmt.Errorf("token number %d (name %q): %w", i+1, e.Name, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// plainJSON is a decoding error without the value that it is about.
func plainJSON(err error) error {
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("the field %q has the wrong type", wrong.Field)
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("it is not JSON: there is a mistake at byte %d", syntax.Offset)
	}
	if strings.HasPrefix(err.Error(), "json: unknown field") {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return errors.New("it is not a whole JSON object")
}

func (e tokenEntry) parse() (APIToken, error) {
	t := APIToken{Name: e.Name, Tenant: e.Tenant}
	switch {
	case e.Name == "":
		return t, errors.New("it has no name")
	case (e.Token == "") == (e.SHA256 == ""):
		return t, errors.New("it needs either token or sha256")
	case e.Scopes != nil && len(*e.Scopes) == 0:
		return t, errors.New("its scopes are empty: name some, or leave the field out for all")
	}
	if e.Scopes != nil {
		t.Scopes = *e.Scopes
	}
	if e.Token != "" {
		t.Hash, t.Weak = sha256.Sum256([]byte(e.Token)), len(e.Token) < weakToken
		return t, checkToken(e.Token)
	}
	hash, err := hex.DecodeString(e.SHA256)
	if err != nil || len(hash) != len(t.Hash) {
		return t, errors.New("sha256 is not 64 hexadecimal digits")
	}
	t.Hash = [sha256.Size]byte(hash)
	return t, nil
}
