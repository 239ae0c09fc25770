package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestImageNames(t *testing.T) {
	for in, want := range map[string]string{
		"python":                             "docker.io/library/python:latest",
		"python:3.12":                        "docker.io/library/python:3.12",
		"team/tool:v1":                       "docker.io/team/tool:v1",
		"docker.io/python":                   "docker.io/library/python:latest",
		"index.docker.io/team/tool":          "docker.io/team/tool:latest",
		"ghcr.io/org/a/b:1":                  "ghcr.io/org/a/b:1",
		"localhost/x":                        "localhost/x:latest",
		"127.0.0.1:5000/x/y:z":               "127.0.0.1:5000/x/y:z",
		"python@" + someDigest:               "docker.io/library/python@" + someDigest,
		"python:3@" + someDigest:             "docker.io/library/python@" + someDigest,
		"localhost/stromboli-agent:f6705ee0": "localhost/stromboli-agent:f6705ee0",
		"a__b":                               "docker.io/library/a__b:latest",
	} {
		n, err := ParseImageName(in)
		if err != nil || n.String() != want {
			t.Errorf("%s: %s, %v, want %s", in, n, err, want)
		}
	}
	for _, in := range []string{
		"", ":", "python:", "python@", "Python", "a//b", "/a", "a/", "../a", "a:b:c", "a@sha256:12", "ghcr.io/", "a b", "a\nb", "-a", "a:-x",
		"http://ghcr.io/a", "a:" + strings.Repeat("x", 129), strings.Repeat("a", 600), "ghcr.io:x/a", "a@md5:0", "é",
	} {
		if n, err := ParseImageName(in); err == nil {
			t.Errorf("%q is taken for %s", in, n)
		}
	}
}

func TestImagePatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, image string
		want           bool
	}{
		{"python", "python:3.12", true},
		{"python", "python@" + someDigest, true},
		{"python", "docker.io/library/python:x", true},
		{"python", "ghcr.io/library/python:x", false},
		{"python", "pythonx:1", false},
		{"python:3.*", "python:3.12", true},
		{"python:3.*", "python:2.7", false},
		{"python:3.*", "python", false},
		{"python:3.*", "python@" + someDigest, false},     // which may be anything
		{"python:3.*", "python:3.1@" + someDigest, false}, // the engine looks at the digest alone
		{"python:*", "python@" + someDigest, true},        // all are allowed
		{"python@" + someDigest, "python:3.1", false},     //
		{"python@" + someDigest, "python@" + someDigest, true},
		{"ghcr.io/org/*", "ghcr.io/org/a:1", true},
		{"ghcr.io/org/*", "ghcr.io/org/a/b:1", false},
		{"ghcr.io/org/**", "ghcr.io/org/a/b:1", true},
		{"ghcr.io/org/*", "ghcr.io/organic/a:1", false},
		{"ghcr.io/org/*", "ghcr.io.evil.example/org/a:1", false},
		{"ghcr.io/*", "ghcrxio/a:1", false}, // a dot is a dot
		{"*.example.com/**", "a.example.com/x/y:1", true},
		{"*.example.com/**", "example.org/x.example.com/y:1", false},
		{"*", "ghcr.io/org/a:1", true},
		{"**", "localhost/a", true},
		{"team/*", "team/tool", true},
		{"team/*", "ghcr.io/team/tool", false},
		{"localhost/**", "localhost/stromboli-agent:1", true},
		{"127.0.0.1:5000/*", "127.0.0.1:5000/a:1", true},
		{"127.0.0.1:5000/*", "127.0.0.1:50001/a:1", false},
		{"docker.io/*", "python:3", false}, // it is docker.io/library/python
		{"docker.io/**", "python:3", true},
	} {
		p, err := ParseImagePatterns([]string{tt.pattern})
		if err != nil {
			t.Fatal(err)
		}
		n, err := ParseImageName(tt.image)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Allow(n); got != tt.want {
			t.Errorf("%s allows %s: %v", tt.pattern, tt.image, got)
		}
	}
	for _, bad := range []string{"", " ", "a b", "a//b", "a/", "[a]", "a?", "python@sha256:1", strings.Repeat("a", 600)} {
		if _, err := ParseImagePatterns([]string{bad}); err == nil || !strings.Contains(err.Error(), ImagePatternsSetting) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestImageRules(t *testing.T) {
	p, err := ParseImagePatterns([]string{"ghcr.io/org/*", "python:3.*"})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Image: "localhost/agent:1", ImagePatterns: p}
	for _, tt := range []struct {
		wanted string
		names  []string
		ok     bool
	}{
		{"ghcr.io/org/a", []string{"ghcr.io/org/a:latest"}, true},
		{"0123456789ab", []string{"ghcr.io/org/a:latest"}, true}, // an id of one that is allowed
		{"0123456789ab", []string{"evil.example/a:1"}, false},
		{"python:3.1", []string{"localhost/python:3.1"}, false}, // what the engine took the short name for
		{"python:3.1", []string{"localhost/python:3.1", "docker.io/library/python:3.1"}, true},
		{"ghcr.io/org/a", nil, false},
		{"localhost/agent:1", []string{"localhost/agent:1"}, true}, // the operator's own
		{"localhost/agent:2", []string{"localhost/agent:2"}, false},
	} {
		err := c.MayUseImage(tt.wanted, tt.names)
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, stromboli.ImageForbidden) {
			t.Errorf("%s, which is %v: %v", tt.wanted, tt.names, err)
		}
	}
	if err := (Config{}).MayUseImage("x", nil); err != nil {
		t.Errorf("without patterns: %v", err)
	}
	n, _ := ParseImageName("x")
	if err := ImagePatterns(nil).MayPull("image", n); !errors.Is(err, stromboli.ImageForbidden) || !strings.Contains(err.Error(), ImagePatternsSetting) {
		t.Errorf("a pull without patterns: %v", err)
	}
	local, _ := ParseImageName("localhost/x")
	all, _ := ParseImagePatterns([]string{"*"})
	if err := all.MayPull("image", local); !errors.Is(err, stromboli.ImageMissing) {
		t.Errorf("a pull of what is built here: %v", err)
	}
	for host, want := range map[string]bool{"ghcr.io": true, "docker.io": true, "169.254.169.254": false, "localhost:1": false} {
		if p.Registry(host) != want {
			t.Errorf("%s may be asked: %v", host, !want)
		}
	}
}
