package client_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
)

// TestAddresses: servers are reached by http, by https where their certificate
// is trusted, and through a unix socket; nothing else is an address.
func TestAddresses(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"id":"run-1","status":"completed","proto":"` + r.Proto + `"}`))
	})
	plain, secure := httptest.NewServer(handler), httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	local := &httptest.Server{Listener: ln, Config: &http.Server{Handler: handler}}
	local.Start()
	t.Cleanup(local.Close)
	trusted := secure.Client().Transport.(*http.Transport).TLSClientConfig
	for _, c := range []struct {
		url    string
		config *tls.Config
		ok     bool
	}{{plain.URL, nil, true}, {plain.URL + "/", nil, true}, {secure.URL, trusted, true}, {secure.URL, nil, false}, {"unix://" + path, nil, true}, {"unix://" + path + "x", nil, false}} {
		api, err := client.New(client.Config{BaseURL: c.url, TLS: c.config})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := api.Job(t.Context(), "run-1"); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.url, err)
		}
		if c.url == secure.URL && !c.ok { // it would be the same the next time
			begin := time.Now()
			if _, err := api.RunAsync(t.Context(), stromboli.RunSpec{Prompt: "x"}); err == nil || time.Since(begin) > time.Minute {
				t.Errorf("%v after %s", err, time.Since(begin))
			}
		}
		api.CloseIdle()
	}
	for _, bad := range []string{"", "127.0.0.1:80", "ftp://x", "unix://relative", "unix:/x", "http://"} {
		if _, err := client.New(client.Config{BaseURL: bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
