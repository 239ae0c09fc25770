package egress

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// upstream is a model's endpoint that remembers what it was sent.
type upstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func newUpstream(t *testing.T, h http.HandlerFunc) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen = append(u.seen, r.Clone(r.Context()))
		u.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) last(t *testing.T) *http.Request {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.seen) == 0 {
		t.Fatal("the upstream saw no request")
	}
	return u.seen[len(u.seen)-1]
}

func (f *fixture) post(path string, header map[string]string) *http.Response {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), http.MethodPost, "http://egress"+path, strings.NewReader(`{"x":1}`))
	if err != nil {
		f.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := f.client.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestModelCredential(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Set-Cookie", "a=b")
		_, _ = io.WriteString(w, "ok")
	})
	for _, c := range []struct {
		cred          Credential
		key, bearer   string
		extra, extra2 string
	}{
		{Credential{APIKey, "sk-real"}, "sk-real", "", "", ""},
		{Credential{AuthToken, "tok-real"}, "", "Bearer tok-real", "", ""},
		{Credential{OAuth, "oat-real"}, "", "Bearer oat-real", "", ""},
		{Credential{}, "", "", "X-Gateway", "gw-real"},
	} {
		t.Run(string(c.cred.Kind), func(t *testing.T) {
			t.Parallel()
			cfg := Config{ModelURL: u.URL + "/pfx/", Credential: c.cred}
			if c.extra != "" {
				cfg.ExtraHeaders = map[string]string{c.extra: c.extra2}
			}
			f := newFixture(t, cfg)
			resp := f.post("/v1/messages?beta=true&key="+string(c.cred.Kind), map[string]string{
				"X-Api-Key": "placeholder", "Authorization": "Bearer placeholder", "Cookie": "placeholder=1", "Proxy-Authorization": "Basic placeholder",
				"X_Api_Key": "placeholder", "X-Gateway": "placeholder", "Anthropic-Beta": "kept", "Connection": "Anthropic-Version", "X-Forwarded-For": "1.2.3.4",
			})
			if got := text(t, resp); resp.StatusCode != 200 || got != "ok" || resp.Header.Get("Set-Cookie") != "" {
				t.Fatalf("status %d, body %q, header %v", resp.StatusCode, got, resp.Header)
			}
			u.mu.Lock()
			defer u.mu.Unlock()
			for _, r := range u.seen {
				if r.URL.Query().Get("key") != string(c.cred.Kind) {
					continue
				}
				if r.URL.Path != "/pfx/v1/messages" || r.Header.Get("Anthropic-Beta") != "kept" || "http://"+r.Host != u.URL {
					t.Errorf("upstream saw %s %s %v", r.Host, r.URL, r.Header)
				}
				if r.Header.Get("X-Api-Key") != c.key || r.Header.Get("Authorization") != c.bearer || r.Header.Get(c.extra) != c.extra2 {
					t.Errorf("credentials upstream: %v", r.Header)
				}
				for name, values := range r.Header {
					if name != "X-Gateway" && strings.Contains(strings.Join(values, " "), "placeholder") {
						t.Errorf("%s of the sandbox reached the upstream: %q", name, values)
					}
				}
				if r.Header.Get("X-Forwarded-For") != "" {
					t.Errorf("X-Forwarded-For went out")
				}
			}
		})
	}
}

func TestModelPaths(t *testing.T) {
	t.Parallel()
	u := newUpstream(t, func(http.ResponseWriter, *http.Request) {})
	f := newFixture(t, Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}})
	if resp := f.post("/v1/messages/count_tokens", nil); resp.StatusCode != 200 {
		t.Errorf("count_tokens: %d", resp.StatusCode)
	}
	before := len(u.seen)
	for _, target := range []string{
		"POST /v1/files", "POST /v1/messages/batches", "POST /v1/messages/", "POST /v1/%6dessages", "POST /v1/messages%2Fcount_tokens",
		"POST /v1/../v1/messages", "POST //v1/messages", "POST /", "GET /api/oauth/profile", "GET /v1/messages", "DELETE /v1/messages", "OPTIONS *",
		"POST /v1/messages/../../admin",
	} {
		got := f.raw(target + " HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		if !strings.Contains(got, " 40") && !strings.HasPrefix(target, "OPTIONS") {
			t.Errorf("%s: %s", target, got)
		}
	}
	if got := f.raw("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"); !strings.Contains(got, "200") {
		t.Errorf("HEAD /: %s", got)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.seen) != before {
		t.Errorf("the upstream saw %v", u.seen[before:])
	}
}

// TestModelStreams: each piece of an answer arrives before the next one is
// made, and a change of configuration in the middle changes nothing.
func TestModelStreams(t *testing.T) {
	t.Parallel()
	next := make(chan string)
	u := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for s := range next {
			_, _ = io.WriteString(w, s+"\n")
			_ = http.NewResponseController(w).Flush()
		}
	})
	f := newFixture(t, Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-one"}})
	go func() { next <- "first" }()
	resp := f.post("/v1/messages", nil)
	lines := bufio.NewReader(resp.Body)
	for i, s := range []string{"first", "second", "third"} {
		if i > 0 {
			next <- s
		}
		if got, err := lines.ReadString('\n'); err != nil || got != s+"\n" {
			t.Fatalf("piece %d: %q, %v", i, got, err)
		}
		if i == 1 {
			if err := f.g.configure(Config{ModelURL: "http://127.0.0.1:1", Credential: Credential{APIKey, "sk-two"}}); err != nil {
				t.Fatal(err)
			}
			if err := f.g.add(f.registration("a")); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(next)
	if _, err := lines.ReadString('\n'); err != io.EOF {
		t.Fatalf("end: %v", err)
	}
	if got := u.last(t).Header.Get("X-Api-Key"); got != "sk-one" {
		t.Errorf("the request went with %q", got)
	}
}

func TestModelFailures(t *testing.T) {
	t.Parallel()
	t.Run("down", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, Config{ModelURL: "http://127.0.0.1:1", Credential: Credential{APIKey, "sk-real"}})
		resp := f.post("/v1/messages", nil)
		if body := text(t, resp); resp.StatusCode != 502 || !strings.Contains(body, `"type":"error"`) || strings.Contains(body, "sk-real") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("not configured", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, Config{})
		if resp := f.post("/v1/messages", nil); resp.StatusCode != 503 {
			t.Errorf("%d", resp.StatusCode)
		}
	})
	t.Run("certificate of nobody", func(t *testing.T) {
		t.Parallel()
		asked := false
		u := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
		u.Config.ErrorLog = nil
		defer u.Close()
		f := newFixture(t, Config{ModelURL: u.URL, Credential: Credential{APIKey, "sk-real"}})
		resp := f.post("/v1/messages", nil)
		if body := text(t, resp); resp.StatusCode != 502 || !strings.Contains(body, "certificate") || asked {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("credential refused", func(t *testing.T) {
		t.Parallel()
		u := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
		f := newFixture(t, Config{ModelURL: u.URL})
		if resp := f.post("/v1/messages", nil); resp.StatusCode != 401 || resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d, X-Should-Retry %q", resp.StatusCode, resp.Header.Get("X-Should-Retry"))
		}
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		u := newUpstream(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		f := newFixture(t, Config{ModelURL: u.URL})
		if _, err := io.ReadAll(f.post("/v1/messages", nil).Body); err == nil {
			t.Error("a cut answer looked like a whole one")
		}
	})
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{
		{ModelURL: "ftp://x"},
		{ModelURL: "https://"},
		{ModelURL: "https://u:p@x"},
		{ModelURL: "https://x?q"},
		{ModelURL: "https://x#f"},
		{ModelURL: ":"},
		{Credential: Credential{"magic", "x"}},
		{Credential: Credential{APIKey, " "}},
		{Credential: Credential{APIKey, "a\nb"}},
		{Credential: Credential{None, "x"}},
		{ExtraHeaders: map[string]string{"a b": "x"}},
		{ExtraHeaders: map[string]string{"a": "x\r\ny"}},
		{Allow: []string{"x"}},
	} {
		err := c.Validate()
		if err == nil {
			t.Errorf("%s: want an error", c)
		}
	}
	shown := Config{ModelURL: "https://h/", Credential: Credential{APIKey, "sk-secret"}, ExtraHeaders: map[string]string{"a": "sk-secret"}}
	for _, s := range []string{shown.String(), shown.GoString(), shown.Credential.GoString(), shown.Credential.LogValue().String()} {
		if strings.Contains(s, "sk-secret") {
			t.Errorf("printed: %s", s)
		}
	}
}
