package setup

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestNpmrc(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	user := `; comment
registry = "https://user.example/npm/"
@scope:registry=https://scoped.example
//user.example/npm/:_authToken=${TOKEN}
//other.example/:_auth=dTpw
//basic.example/:username=u
//basic.example/:_password=cA==
https-proxy=proxy.example:3128
noproxy=internal.example
missing=${NOT_SET}
`
	global := filepath.Join(home, "global")
	if err := errors.Join(
		os.WriteFile(filepath.Join(home, ".npmrc"), []byte(user), 0o600),
		os.WriteFile(global, []byte("registry=https://global.example/\ncafile=/global.pem\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	env := []string{"HOME=" + home, "TOKEN=t0k", "npm_config_globalconfig=" + global}
	rc, err := readNpmrc(env)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		rc.registry("npm"):                                "https://user.example/npm/",
		rc.registry("@scope/x"):                           "https://scoped.example",
		rc.values["cafile"]:                               "/global.pem",
		rc.values["missing"]:                              "${NOT_SET}",
		auth(t, rc, "https://user.example/npm/x/-/x.tgz"): "Bearer t0k",
		auth(t, rc, "https://other.example/a"):            "Basic dTpw",
		auth(t, rc, "https://basic.example/a"):            "Basic dTpw",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, address := range []string{"https://user.example/other/", "https://user.example.evil/npm/", "https://evil.example/npm/"} {
		if h := auth(t, rc, address); h != "" {
			t.Errorf("%s gets the token: %q", address, h)
		}
	}
	proxied := func(address string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := rc.proxy(req)
		if err != nil {
			t.Fatal(err)
		}
		if u == nil {
			return ""
		}
		return u.String()
	}
	if got := proxied("https://user.example/"); got != "http://proxy.example:3128" {
		t.Errorf("proxy %q", got)
	}
	if got := proxied("https://a.internal.example/"); got != "" {
		t.Errorf("proxy for an exception: %q", got)
	}

	rc, err = readNpmrc(append(env, "NPM_CONFIG_REGISTRY=https://env.example/"))
	if err != nil || rc.registry("npm") != "https://env.example/" {
		t.Errorf("the environment must win: %q, %v", rc.registry("npm"), err)
	}
}

func auth(t *testing.T, rc npmrc, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return rc.authorization(u)
}

func TestTokenStaysWithItsHost(t *testing.T) {
	t.Parallel()
	var leaked atomic.Value
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		leaked.Store(r.Header.Get("Authorization"))
	}))
	defer other.Close()
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusFound)
	}))
	defer first.Close()
	rc := npmrc{values: map[string]string{"//" + strings.TrimPrefix(first.URL, "http://") + "/:_authToken": "secret"}}
	c, err := newRegistryClient(rc)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	body, _, err := c.get(t.Context(), first.URL+"/x")
	if err != nil {
		t.Fatal(err)
	}
	_ = body.Close()
	if got := leaked.Load(); got != "" {
		t.Errorf("the other host saw %q", got)
	}
}

func FuzzNpmrc(f *testing.F) {
	f.Add("registry=https://x.example\n//h/:_authToken=${A}")
	f.Add("a=\"\nb='\n=\n${")
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(t.TempDir(), "npmrc")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		rc, err := readNpmrc([]string{"A=b", "npm_config_userconfig=" + path, "npm_config_globalconfig=/nonexistent"})
		if err != nil {
			t.Fatal(err)
		}
		_ = rc.registry("@a/b")
		_ = auth(t, rc, "https://h/x/y")
	})
}
