package blob

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/net/http/httpproxy"
)

// Place is where a bucket is.
type Place struct {
	Host   string // host or host:port of the service
	Plain  bool   // without TLS
	Region string
	Bucket string
	Prefix string // of all keys; empty, or ends with a slash
}

// String names the place, however it was written.
func (p Place) String() string { return "s3://" + p.Host + "/" + p.Bucket + "/" + p.Prefix }

// ParsePlace reads s3://BUCKET/PREFIX?region=REGION&endpoint=URL. Without an
// endpoint it is Amazon's; one with http:// is spoken to without TLS. The region is
// us-east-1 where it isn't named.
func ParsePlace(s string) (Place, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.Host == "" || u.Fragment != "" {
		return Place{}, errors.New("must be s3://BUCKET/PREFIX?region=REGION&endpoint=URL")
	}
	if u.User != nil {
		return Place{}, errors.New("must not hold credentials: give them by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by a file")
	}
	p := Place{Region: "us-east-1", Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	if p.Prefix != "" {
		if err := checkKey(p.Prefix); err != nil {
			return Place{}, fmt.Errorf("its prefix: %w", err)
		}
		p.Prefix += "/"
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Place{}, errors.New("its parameters can't be read")
	}
	for name, values := range q {
		switch {
		case len(values) > 1:
			return Place{}, fmt.Errorf("its parameter %s is given twice", name)
		case name == "region" && values[0] != "":
			p.Region = values[0]
		case name == "endpoint":
			if err := p.endpoint(values[0]); err != nil {
				return Place{}, err
			}
		default:
			return Place{}, fmt.Errorf("its parameter %q is neither region nor endpoint, or is empty", name)
		}
	}
	if p.Host == "" {
		p.Host = "s3." + p.Region + ".amazonaws.com"
	}
	return p, nil
}

func (p *Place) endpoint(s string) error {
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return errors.New("its endpoint must be http:// or https:// and a host, with a port or without")
	}
	p.Host, p.Plain = u.Host, u.Scheme == "http"
	return nil
}

// found looks for credentials where the AWS tools do, without asking the network:
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else the profile
// AWS_PROFILE of AWS_SHARED_CREDENTIALS_FILE (~/.aws/credentials).
type found struct {
	getenv func(string) string
	home   string
}

// RetrieveWithCredContext implements credentials.Provider.
func (f *found) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	v := credentials.Value{
		AccessKeyID: f.getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: f.getenv("AWS_SECRET_ACCESS_KEY"),
		SessionToken: f.getenv("AWS_SESSION_TOKEN"), SignerType: credentials.SignatureV4,
	}
	if v.AccessKeyID != "" && v.SecretAccessKey != "" {
		return v, nil
	}
	file, profile := f.getenv("AWS_SHARED_CREDENTIALS_FILE"), f.getenv("AWS_PROFILE")
	if file == "" {
		file = filepath.Join(f.home, ".aws", "credentials")
	}
	if profile == "" {
		profile = "default"
	}
	v, err := (&credentials.FileAWSCredentials{Filename: file, Profile: profile}).RetrieveWithCredContext(cc)
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return v, errors.Join(fmt.Errorf("there are no credentials for the bucket: neither AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY nor the profile %q in %s", profile, file), err)
	}
	return v, nil
}

// Retrieve implements credentials.Provider.
func (f *found) Retrieve() (credentials.Value, error) { return f.RetrieveWithCredContext(nil) }

// IsExpired implements credentials.Provider: a file may have changed.
func (f *found) IsExpired() bool { return true }

// proxy is the proxy that the environment names.
func proxy(getenv func(string) string) func(*http.Request) (*url.URL, error) {
	env := func(names ...string) string {
		for _, name := range names {
			if v := getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	choose := (&httpproxy.Config{
		HTTPProxy: env("HTTP_PROXY", "http_proxy"), HTTPSProxy: env("HTTPS_PROXY", "https_proxy"), NoProxy: env("NO_PROXY", "no_proxy"),
	}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}
