package auth_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/tomblancdev/stromboli"
)

// sign makes a JWT by hand, as another program would.
func sign(t *testing.T, key string, header, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(j)
	}
	text := part(header) + "." + part(claims)
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func TestForeignJWTs(t *testing.T) {
	b := open(t)
	hs := map[string]any{"alg": "HS256", "typ": "JWT"}
	now := b.now.Unix()
	sound := map[string]any{
		"aud": "stromboli", "use": "access", "sub": "portal", "jti": "1", "exp": now + 100, "iat": now, "tenant": "team", "scope": "read future",
	}
	with := func(key string, value any) map[string]any {
		c := maps.Clone(sound)
		if c[key] = value; value == nil {
			delete(c, key)
		}
		return c
	}
	id := b.good("another program's", sign(t, secret, hs, sound))
	if want := (stromboli.Principal{Tenant: "team", Name: "portal", Scopes: stromboli.ScopeRead}); id.Principal != want || id.Account != "team/portal" {
		t.Errorf("%+v", id)
	}
	if id := b.good("with defaults", sign(t, secret, hs, with("scope", nil))); id.Scopes != stromboli.AllScopes {
		t.Errorf("%+v", id)
	}
	if id := b.good("without scopes", sign(t, secret, hs, with("scope", ""))); id.Scopes != 0 {
		t.Errorf("%+v", id)
	}
	b.good("a clock behind", sign(t, secret, hs, with("exp", now-29)))
	b.good("a clock ahead", sign(t, secret, hs, with("iat", now+29)))
	b.good("several audiences", sign(t, secret, hs, with("aud", []string{"x", "stromboli"})))

	text := sign(t, secret, hs, sound)
	body, tag := text[:strings.LastIndexByte(text, '.')+1], text[strings.LastIndexByte(text, '.')+1:]
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims(sound)).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	larger := func(m jwt.SigningMethod) string {
		s, err := jwt.NewWithClaims(m, jwt.MapClaims(sound)).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for what, token := range map[string]string{
		"no algorithm": none, "no algorithm, signed": sign(t, secret, map[string]any{"alg": "none"}, sound),
		"NONE":         sign(t, secret, map[string]any{"alg": "NONE"}, sound),
		"HS384":        larger(jwt.SigningMethodHS384),
		"HS512":        larger(jwt.SigningMethodHS512),
		"RS256":        sign(t, secret, map[string]any{"alg": "RS256"}, sound), // the secret for a public key
		"hs256":        sign(t, secret, map[string]any{"alg": "hs256"}, sound),
		"no header":    sign(t, secret, map[string]any{}, sound),
		"crit":         sign(t, secret, map[string]any{"alg": "HS256", "crit": []string{"x"}, "x": 1}, sound),
		"another key":  sign(t, secret+"x", hs, sound),
		"an own key":   sign(t, "", map[string]any{"alg": "HS256", "jwk": map[string]any{"kty": "oct", "k": ""}, "kid": "/dev/null"}, sound),
		"no signature": body, "half of it": body + tag[:20], "other spelling": body + tag[:len(tag)-1] + next(tag[len(tag)-1]),
		"padding": text + "=", "space": " " + text, "four parts": text + ".x",
		"no end": sign(t, secret, hs, with("exp", nil)), "no subject": sign(t, secret, hs, with("sub", nil)),
		"no id": sign(t, secret, hs, with("jti", nil)), "no audience": sign(t, secret, hs, with("aud", nil)),
		"another's": sign(t, secret, hs, with("aud", "else")), "no use": sign(t, secret, hs, with("use", nil)),
		"odd tenant": sign(t, secret, hs, with("tenant", "a/../b")), "odd subject": sign(t, secret, hs, with("sub", "a\nb")),
		"end of text": sign(t, secret, hs, with("exp", "soon")),
	} {
		b.bad(what, token, "wrong")
	}
	b.bad("old", sign(t, secret, hs, with("exp", now-31)), "expired")
	b.bad("early", sign(t, secret, hs, with("iat", now+31)), "not valid yet")
	b.bad("not before", sign(t, secret, hs, with("nbf", now+31)), "not valid yet")
	b.bad("a grant that isn't", sign(t, secret, hs, with("grant", "grant-x")), "revoked")
	_, err = b.Refresh(b.ctx(), sign(t, secret, hs, with("use", "refresh")))
	b.refused("another program's refresh token", err, "wrong")

	// Logging out ends that one token, in every spelling, also after a restart.
	if err := b.Revoke(b.ctx(), id); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.bad("logged out", text, "revoked")
	b.bad("logged out", sign(t, secret, hs, with("scope", "admin")), "revoked")
	b.good("the next one", sign(t, secret, hs, with("jti", "2")))
}

// next is the base64 character that differs in the bits which nobody reads.
func next(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}
