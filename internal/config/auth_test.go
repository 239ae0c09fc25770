package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAddressWithAuth(t *testing.T) {
	for _, c := range []struct {
		environ []string
		address string
		closed  bool
	}{
		{nil, "127.0.0.1:8080", false},
		{[]string{"STROMBOLI_AUTH_ENABLED=true"}, ":8080", false},
		{[]string{"STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_SERVER_ADDRESS=127.0.0.1:1"}, "127.0.0.1:1", false},
		{[]string{"STROMBOLI_AUTH_START_CLOSED=true"}, "127.0.0.1:8080", false},
		{[]string{"STROMBOLI_AUTH_START_CLOSED=true", "STROMBOLI_SERVER_ADDRESS=:8080"}, ":8080", true},
		{[]string{"STROMBOLI_AUTH_START_CLOSED=true", "STROMBOLI_SERVER_ADDRESS=10.0.0.1:8080"}, "10.0.0.1:8080", true},
		{[]string{"STROMBOLI_AUTH_START_CLOSED=true", "STROMBOLI_SERVER_ADDRESS=:8080", "STROMBOLI_AUTH_ALLOW_PUBLIC=true"}, ":8080", false},
		{[]string{"STROMBOLI_AUTH_START_CLOSED=true", "STROMBOLI_SERVER_ADDRESS=:8080", "STROMBOLI_AUTH_ENABLED=true"}, ":8080", false},
	} {
		got := load(t, c.environ...)
		if got.Server.Address != c.address || got.Closed() != c.closed {
			t.Errorf("%q: %s, closed %v", c.environ, got.Server.Address, got.Closed())
		}
	}
	_, err := Load([]string{"HOME=/h", "STROMBOLI_SERVER_ADDRESS=:8080"})
	if err == nil || !strings.Contains(err.Error(), "STROMBOLI_AUTH_ENABLED") || !strings.Contains(err.Error(), "STROMBOLI_AUTH_ALLOW_PUBLIC") {
		t.Errorf("%v", err)
	}
}

func TestAuthSettingsRefused(t *testing.T) {
	for _, set := range []string{
		"STROMBOLI_JWT_EXPIRY=1ms", "STROMBOLI_JWT_REFRESH_EXPIRY=-1h", "STROMBOLI_RATE_LIMIT_RPS=0", "STROMBOLI_RATE_LIMIT_RPS=-1", "STROMBOLI_RATE_LIMIT_RPS=NaN",
		"STROMBOLI_RATE_LIMIT_RPS=Inf", "STROMBOLI_RATE_LIMIT_BURST=0", "STROMBOLI_RATE_LIMIT_BURST=1000000", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=10.0.0.0/33",
		"STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=10.0.0.1,proxy", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=fe80::1%eth0", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=::ffff:10.0.0.0/104",
	} {
		name, _, _ := strings.Cut(set, "=")
		if _, err := Load([]string{"HOME=/h", set}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", set, err)
		}
	}
	c := load(t, "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=10.1.2.3/8, 192.0.2.1,fd00::/8")
	got, err := c.RateLimit.Proxies()
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::/8")}
	if err != nil || !slices.Equal(got, want) || c.JWT.Expiry != 24*time.Hour || c.JWT.RefreshExpiry != 168*time.Hour || c.RateLimit.RPS != 10 || c.RateLimit.Burst != 20 {
		t.Errorf("%v, %v, %+v", got, err, c)
	}
}

func hashOf(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

func TestLoadAuth(t *testing.T) {
	const long = "0123456789abcdefghij"
	other := hashOf("other")
	path := file(t, `{"tokens":[
		{"name":"ci","token":"`+long+`","tenant":"team","scopes":["run","read"]},
		{"name":"ops","sha256":"`+hex.EncodeToString(other[:])+`"}]}`)
	got, err := load(t, "STROMBOLI_API_TOKENS_FILE="+path, "STROMBOLI_API_TOKENS= a , b", "STROMBOLI_JWT_SECRET= s ", "X=1").LoadAuth()
	want := AuthSecrets{JWT: "s", Tokens: []APIToken{
		{Name: "token-1", Hash: hashOf("a"), Weak: true},
		{Name: "token-2", Hash: hashOf("b"), Weak: true},
		{Name: "ci", Tenant: "team", Scopes: []string{"run", "read"}, Hash: hashOf(long)},
		{Name: "ops", Hash: other},
	}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if shown := fmt.Sprintf("%+v %#v", got, got); strings.Contains(shown, long) || strings.Contains(shown, `JWT:"s"`) {
		t.Errorf("it shows secrets: %s", shown)
	}
	if got, err := load(t, "STROMBOLI_API_TOKENS=", "STROMBOLI_JWT_SECRET=").LoadAuth(); err != nil || len(got.Tokens) != 0 || got.JWT != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

// Each mistake is told, without the token.
func TestLoadAuthRefuses(t *testing.T) {
	const token = "hunter2-hunter2-hunter2"
	entry := func(fields string) string { return `{"tokens":[{"name":"ci",` + fields + `}]}` }
	for text, says := range map[string]string{
		``:                                 "not a whole JSON object",
		`{`:                                "not",
		token:                              "not JSON",
		`{"tokens":[]}`:                    "names no token",
		`{}`:                               "names no token",
		`{"tokens":[{}]} `:                 "number 1",
		`{"tokens":[]}{}`:                  "after the JSON",
		`{"token":[]}`:                     `unknown field "token"`,
		entry(`"tokne":"` + token + `"`):   `unknown field "tokne"`,
		entry(`"token":12345678`):          "wrong type",
		entry(`"token":["` + token + `"]`): "wrong type",
		entry(`"token":"` + token + `","scopes":"run"`): "wrong type",
		entry(`"token":"` + token + `","scopes":[]`):    "scopes are empty",
		entry(`"token":"` + token + ` x"`):              "visible ASCII",
		entry(`"token":"` + token + `é"`):               "visible ASCII",
		entry(`"tenant":"x"`):                           "either token or sha256",
		entry(`"token":"` + token + `","sha256":"00"`):  "either token or sha256",
		entry(`"sha256":"00"`):                          "64 hexadecimal digits",
		`{"tokens":[{"token":"` + token + `"}]}`:        "no name",
	} {
		_, err := load(t, "STROMBOLI_API_TOKENS_FILE="+file(t, text)).LoadAuth()
		if err == nil || !strings.Contains(err.Error(), "STROMBOLI_API_TOKENS_FILE") || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "12345678")) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
	for _, list := range []string{"a,", ",", "a,,b", "a b", "é", strings.Repeat("x", 5000)} {
		_, err := load(t, "STROMBOLI_API_TOKENS="+list).LoadAuth()
		if err == nil || !strings.Contains(err.Error(), "STROMBOLI_API_TOKENS: number") {
			t.Errorf("%.20q: %v", list, err)
		}
	}
}

func TestTokensFileIsPrivate(t *testing.T) {
	good := `{"tokens":[{"name":"a","token":"t"}]}`
	open := file(t, good)
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		open: "chmod 600", fifo: "regular file", t.TempDir(): "regular file", "/nowhere/tokens": "no such file",
		file(t, good+strings.Repeat(" ", 1<<20)): "larger than",
	} {
		_, err := load(t, "STROMBOLI_API_TOKENS_FILE="+path).LoadAuth()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
	if os.Geteuid() == 0 {
		foreign := file(t, good)
		if err := os.Chown(foreign, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := load(t, "STROMBOLI_API_TOKENS_FILE="+foreign).LoadAuth(); err == nil || !strings.Contains(err.Error(), "belongs to uid 12345") {
			t.Errorf("%v", err)
		}
	}
}
