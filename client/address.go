package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// unixScheme is what the address of a unix socket begins with.
const unixScheme = "unix://"

// parseAddress takes an http, https or unix address apart. Requests to a socket
// are addressed to localhost.
func parseAddress(text string) (base *url.URL, socket string, err error) {
	if path, ok := strings.CutPrefix(text, unixScheme); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, "", fmt.Errorf("client: %q is not unix:// and an absolute path", text)
		}
		return &url.URL{Scheme: "http", Host: "localhost"}, path, nil
	}
	base, err = url.Parse(text)
	if err != nil || (base.Scheme != "http" && base.Scheme != "https") || base.Host == "" {
		return nil, "", fmt.Errorf("client: %q is not an http, https or unix address", text)
	}
	base.Path = strings.TrimRight(base.Path, "/")
	return base, "", nil
}

func transport(socket string, config *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     config,
		ForceAttemptHTTP2:   true, // not by itself where there is a dialer
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     time.Minute,
		MaxIdleConnsPerHost: 16,
	}
	if socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
	}
	return t
}
