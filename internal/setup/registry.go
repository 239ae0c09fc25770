package setup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const metadataLimit = 8 << 20

// registryClient speaks to an npm registry without npm.
type registryClient struct {
	rc   npmrc
	http *http.Client
}

// dist is the part of a version's metadata that says what to fetch.
type dist struct {
	Tarball   string `json:"tarball"`
	Integrity string `json:"integrity"`
}

func newRegistryClient(rc npmrc) (*registryClient, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	files := []string{rc.values["cafile"], lookup(rc.env, "NODE_EXTRA_CA_CERTS")}
	for _, file := range files {
		if file == "" || file == "null" {
			continue
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read npm's certificate authorities: %w", err)
		}
		pool.AppendCertsFromPEM(pem)
	}
	if ca := rc.values["ca"]; ca != "" {
		pool.AppendCertsFromPEM([]byte(strings.ReplaceAll(ca, `\n`, "\n")))
	}
	return &registryClient{rc: rc, http: &http.Client{
		Transport: &http.Transport{
			Proxy:                 rc.proxy,
			TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   20 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			ForceAttemptHTTP2:     true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) >= 5 {
				return errors.New("too many redirects")
			}
			if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("redirect to an unencrypted address")
			}
			// Another host must not see the first one's credentials, nor a
			// host without any those of its neighbour.
			r.Header.Del("Authorization")
			if h := rc.authorization(r.URL); h != "" {
				r.Header.Set("Authorization", h) //nolint:gosec // chosen anew for the new address, above
			}
			return nil
		},
	}}, nil
}

func (c *registryClient) close() { c.http.CloseIdleConnections() }

// version reads one version's metadata.
func (c *registryClient) version(ctx context.Context, registry, pkg, version string) (dist, error) {
	base, err := url.Parse(registry)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return dist{}, errors.New("npm's registry is not an http or https address")
	}
	u := strings.TrimSuffix(base.String(), "/") + "/" + strings.ReplaceAll(pkg, "/", "%2f") + "/" + version
	body, _, err := c.get(ctx, u)
	if err != nil {
		return dist{}, fmt.Errorf("read the registry's entry of %s@%s: %w", pkg, version, err)
	}
	defer body.Close()
	var meta struct {
		Version string `json:"version"`
		Dist    dist   `json:"dist"`
	}
	if err := json.NewDecoder(io.LimitReader(body, metadataLimit)).Decode(&meta); err != nil {
		return dist{}, fmt.Errorf("decode the registry's entry of %s@%s: %w", pkg, version, err)
	}
	if meta.Version != version || meta.Dist.Tarball == "" {
		return dist{}, fmt.Errorf("the registry answered %s@%s with another package", pkg, version)
	}
	return meta.Dist, nil
}

// get opens a URL; the size is -1 where the server doesn't say.
func (c *registryClient) get(ctx context.Context, address string) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, 0, errors.New("the registry gave an address that is none")
	}
	if h := c.rc.authorization(req.URL); h != "" {
		req.Header.Set("Authorization", h)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, 0, fmt.Errorf("%s answered %s", req.URL.Host, res.Status)
	}
	return res.Body, res.ContentLength, nil
}
