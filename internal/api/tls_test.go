package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

// startTLS serves with a certificate that the returned configuration trusts.
func startTLS(t *testing.T, change ...func(*api.Config)) (*server, *tls.Config) {
	t.Helper()
	lent := httptest.NewUnstartedServer(nil)
	lent.EnableHTTP2 = false
	lent.StartTLS()
	serverTLS := &tls.Config{Certificates: lent.TLS.Certificates, MinVersion: tls.VersionTLS12}
	clientTLS := lent.Client().Transport.(*http.Transport).TLSClientConfig
	lent.Close()
	s := start(t, append(change, func(c *api.Config) { c.TLS = serverTLS })...)
	return s, clientTLS
}

func (s *server) askTLS(t *testing.T, config *tls.Config, h2 bool, path string) (*http.Response, string) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: h2}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestTLS: both protocols are spoken, old versions are not, and what net/http
// answers by itself is JSON here too.
func TestTLS(t *testing.T) {
	s, config := startTLS(t)
	for h2, proto := range map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"} {
		if resp, body := s.askTLS(t, config, h2, "/health"); resp.StatusCode != 200 || resp.Proto != proto || !strings.Contains(body, `"stromboli"`) {
			t.Errorf("%s: %d %s", resp.Proto, resp.StatusCode, body)
		}
		if resp, body := s.askTLS(t, config, h2, "/jobs/run-x"); resp.StatusCode != 404 || !strings.Contains(body, "not_found") {
			t.Errorf("%s: %d %s", resp.Proto, resp.StatusCode, body)
		}
	}
	old := config.Clone()
	old.MaxVersion = tls.VersionTLS11
	if c, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", s.addr); err == nil {
		_ = c.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if resp, body := reply(t, dial(t, "127.0.0.1", s.addr, get("/health"))); resp.StatusCode != 400 || !strings.Contains(body, "HTTPS only") || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("plain HTTP: %d %s", resp.StatusCode, body)
	}
	c, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.WriteString(c, "GET /health HTTP/1.1\r\nbroken\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(b), `"code":"invalid_request"`) {
		t.Errorf("what is not HTTP: %d %s", resp.StatusCode, b)
	}
}

// TestTLSCaps: requests that share a connection count as connections, and give
// their places back.
func TestTLSCaps(t *testing.T) {
	s, config := startTLS(t, func(c *api.Config) { c.MaxPerAddress = 3 })
	path := "https://" + s.addr + "/jobs/" + stromboli.JobID(submitted(t, s)) + "/stream"
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	open := func() (*http.Response, context.CancelFunc) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cancel(); _ = resp.Body.Close() })
		return resp, cancel
	}
	var cancels []context.CancelFunc
	for range 3 {
		resp, cancel := open()
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatalf("%d %s", resp.StatusCode, resp.Proto)
		}
		cancels = append(cancels, cancel)
	}
	if resp, _ := open(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d", resp.StatusCode)
	}
	cancels[1]()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		if resp, _ := open(); resp.StatusCode == 200 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a place that was given up is nobody's")
		}
	}
}

// TestTLSSilent: who doesn't shake hands is cut off, and keeps no server from
// stopping.
func TestTLSSilent(t *testing.T) {
	s, _ := startTLS(t, func(c *api.Config) { c.HeaderTimeout = 100 * time.Millisecond })
	c := dial(t, "127.0.0.1", s.addr, "")
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it was sent something")
	} else if e, ok := err.(net.Error); ok && e.Timeout() { //nolint:errorlint // as returned
		t.Error("the connection stays open")
	}
}

func TestTLSStopsWithHandshakes(t *testing.T) {
	s, _ := startTLS(t, func(c *api.Config) { c.HeaderTimeout = time.Hour })
	for range 3 {
		dial(t, "127.0.0.1", s.addr, "")
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}
