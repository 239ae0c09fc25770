package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fromFile reads a configuration file's text, in mode 0600.
func fromFile(t *testing.T, text string, environ ...string) (*Config, error) {
	t.Helper()
	return Read(Source{Environ: append([]string{"HOME=/home/u"}, environ...), File: file(t, text)})
}

func TestFile(t *testing.T) {
	got, err := fromFile(t, `
# everything that a value may look like
server:
  allowed_hosts: [a, b]
  max_body: 2048
agent:
  image: &name python
  allowed_volumes: /a,/b
  allow_all_volumes: true
  timezone: *name
resources: {memory: 1g, cpus: 1.5, timeout: 45m}
rate_limit:
  rps: 0.5
egress:
  allowlist:
    - "*.pypi.org"
    - github.com
queue_max: 7
container_host: unix:///s
jobs:
log:
  level: ~
  format: ""
api_tokens: [one, two]
jwt: {secret: s3}
webhook: {signing_secret: "a,b"}
tracing: {endpoint: "x:1"}
`, "STROMBOLI_QUEUE_MAX=9", "STROMBOLI_RESOURCES_MEMORY=")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Load([]string{
		"HOME=/home/u", "STROMBOLI_SERVER_ALLOWED_HOSTS=a,b", "STROMBOLI_SERVER_MAX_BODY=2048", "STROMBOLI_AGENT_IMAGE=python", "STROMBOLI_AGENT_ALLOWED_VOLUMES=/a,/b",
		"STROMBOLI_AGENT_ALLOW_ALL_VOLUMES=true", "STROMBOLI_AGENT_TIMEZONE=python", "STROMBOLI_RESOURCES_MEMORY=1g", "STROMBOLI_RESOURCES_CPUS=1.5", "STROMBOLI_RESOURCES_TIMEOUT=45m",
		"STROMBOLI_RATE_LIMIT_RPS=0.5", "STROMBOLI_EGRESS_ALLOWLIST=*.pypi.org,github.com", "STROMBOLI_QUEUE_MAX=9", "CONTAINER_HOST=unix:///s",
		"STROMBOLI_API_TOKENS=one,two", "STROMBOLI_JWT_SECRET=s3", "STROMBOLI_WEBHOOK_SIGNING_SECRET=a,b", "STROMBOLI_TRACING_ENDPOINT=x:1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, restart := got.Changed(want); len(restart) > 0 || got.QueueMax != 9 || got.Resources.Timeout != 45*time.Minute {
		t.Errorf("it differs in %v: %+v", restart, got)
	}
	if reload, _ := got.Changed(want); len(reload) > 0 {
		t.Errorf("it differs in %v: %+v", reload, got)
	}
	origins := map[string]string{}
	for _, s := range got.Settings() {
		origins[s.Variable] = strings.TrimPrefix(s.Origin.String(), got.File())
		if s.Secret && (s.Value != nil || s.Set != (s.Origin != Origin{})) {
			t.Errorf("%+v", s)
		}
	}
	for variable, origin := range map[string]string{
		"STROMBOLI_QUEUE_MAX": "STROMBOLI_QUEUE_MAX", "STROMBOLI_SERVER_MAX_BODY": ":5", "STROMBOLI_RESOURCES_MEMORY": ":11", "STROMBOLI_LOG_LEVEL": "default", "STROMBOLI_JWT_SECRET": ":25",
	} {
		if origins[variable] != origin {
			t.Errorf("%s comes from %s, want %s", variable, origins[variable], origin)
		}
	}
}

// All that is wrong is told, with file, line and key, and no secret.
func TestFileRefused(t *testing.T) {
	for text, says := range map[string][]string{
		"server:\n  addresss: x\nagnet:\n  image: i\n": {":2: server.addresss: no such setting; did you mean server.address?", ":3: agnet: no such setting"},
		"server:\n  max_body: 10m\nqueue_max: many\n": {
			`:2: server.max_body: STROMBOLI_SERVER_MAX_BODY: "10m" is not a whole number`, `:3: queue_max: STROMBOLI_QUEUE_MAX: "many" is not a whole number`,
		},
		"resources:\n  timeout: 30\n":                 {`:2: resources.timeout: STROMBOLI_RESOURCES_TIMEOUT: "30" is not a duration such as 90s`},
		"resources:\n  timeout: 1ms\nqueue_max: -1\n": {":2: resources.timeout: STROMBOLI_RESOURCES_TIMEOUT: must be at least 1s", ":3: queue_max: STROMBOLI_QUEUE_MAX: must not be negative"},
		"queue_max: 1\nqueue_max: 2\n":                {":2: queue_max: it is set twice, first in line 1"},
		"agent: {image: a}\nagent: {timezone: b}\n":   {":2: agent: it is set twice"},
		"agent: yes\n":                                     {":1: agent: it is not a mapping"},
		"agent: {allow_all_volumes: yes}\n":                {`"yes" is not true or false`},
		"queue_max: [1]\n":                                 {":1: queue_max: it takes one value"},
		"queue_max: {a: 1}\n":                              {":1: queue_max: it takes one value"},
		"agent:\n  allowed_volumes: [/a, \"/b,/c\"]\n":     {":2: agent.allowed_volumes: an entry of a list is text without a comma"},
		"agent:\n  allowed_volumes:\n  - /a\n  -\n":        {":4: agent.allowed_volumes: an entry"},
		"agent:\n  allowed_volumes: {a: b}\n":              {":2: agent.allowed_volumes: it takes one value, or a list"},
		"? [a]\n: b\n":                                     {"a name is text"},
		"a: b: c\n":                                        {"it is not YAML"},
		"\tqueue_max: 1\n":                                 {"it is not YAML"},
		"- a\n":                                            {"the file: it is not a mapping"},
		"queue_max: 1\n---\nqueue_max: 2\n":                {"more than one document"},
		"<<: {queue_max: 1}\n":                             {"no such setting"},
		"STROMBOLI_QUEUE_MAX: 1\n":                         {"no such setting"},
		"server.max_body: 1\n":                             {":1: server.max_body: no such setting; a section is a mapping"},
		"tracing: {ednpoint: x}\n":                         {"tracing.ednpoint: no such setting; did you mean tracing.endpoint?"},
		strings.Repeat("#", maxFile) + "\n":                {"larger than"},
		"jwt: {secret: [hunter2, [x]]}\n":                  {"jwt.secret: an entry of a list"},
		"api_tokens: {hunter2: x}\n":                       {"api_tokens: it takes one value"},
		"queue_max: &x [*x]\n":                             {"queue_max"},
		"agent: &a {image: i, more: *a}\n":                 {"agent.more: no such setting"},
		strings.Repeat("[", 20000):                         {"it is not YAML"},
		"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nqueue_max: [*b]": {"no such setting"},
	} {
		_, err := fromFile(t, text)
		if err == nil {
			t.Errorf("%.40q was taken", text)
			continue
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%.40q: %v\nwant %q", text, err, s)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.40q: a secret is shown: %v", text, err)
		}
	}
	for _, empty := range []string{"", "# nothing\n", "~\n", "---\n", "agent:\n"} {
		if c, err := fromFile(t, empty); err != nil || c.QueueMax != 1000 {
			t.Errorf("%q: %v", empty, err)
		}
	}
}

func TestFileModes(t *testing.T) {
	for _, c := range []struct {
		text string
		mode os.FileMode
		says string
	}{
		{"queue_max: 1", 0o644, ""},
		{"queue_max: 1", 0o664, ""},
		{"queue_max: 1", 0o646, "everybody may write it"},
		{"jwt: {secret: hunter2}", 0o600, ""},
		{"jwt: {secret: hunter2}", 0o640, "1: jwt.secret: it is a secret, and others can read the file (mode 0640): chmod 600"},
		{"jwt: {secret: ''}", 0o644, ""},
		{"api_tokens: [hunter2]", 0o604, "api_tokens: it is a secret"},
	} {
		path := file(t, c.text)
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := Read(Source{Environ: []string{"HOME=/h"}, File: path})
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%q, %o: %v", c.text, c.mode, err)
		}
	}
	for _, path := range []string{t.TempDir(), "/dev/null", "/missing"} {
		if _, err := Read(Source{Environ: []string{"HOME=/h"}, File: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestFind(t *testing.T) {
	here, home, etc := t.TempDir(), t.TempDir(), t.TempDir()
	put := func(path string) string {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Chdir(here)
	look := func(want string) {
		t.Helper()
		got, err := find([][]string{{"stromboli.yaml", "stromboli.yml"}}, []string{home, etc})
		if got != want || err != nil {
			t.Errorf("found %q, %v; want %q", got, err, want)
		}
	}
	look("")
	put(filepath.Join(here, "config.yaml")) // anybody's
	look("")
	look(put(filepath.Join(etc, "stromboli.yaml")))
	look(put(filepath.Join(home, "config.yml")))
	put("stromboli.yml")
	look("stromboli.yml")
	put("stromboli.yaml")
	if _, err := find([][]string{{"stromboli.yaml", "stromboli.yml"}}, nil); err == nil || !strings.Contains(err.Error(), "several") {
		t.Errorf("of two: %v", err)
	}
	if os.Geteuid() == 0 {
		for _, f := range []string{"stromboli.yml", "stromboli.yaml"} {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
		path := put(filepath.Join(here, "stromboli.yaml"))
		if err := os.Chown(path, 1000, 1000); err != nil {
			t.Fatal(err)
		}
		if _, err := find([][]string{{path}}, nil); err == nil || !strings.Contains(err.Error(), "uid 1000") {
			t.Errorf("somebody else's: %v", err)
		}
	}
}

// A file that an agent may have written counts for nothing.
func TestFindWhereAgentsWrite(t *testing.T) {
	dir := t.TempDir()
	here := filepath.Join(dir, "project", "below")
	if err := os.MkdirAll(here, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(here)
	if err := os.WriteFile("stromboli.yaml", []byte("agent: {allow_all_volumes: true}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for volumes, ok := range map[string]bool{
		"STROMBOLI_AGENT_ALLOWED_VOLUMES=": true, "STROMBOLI_AGENT_ALLOWED_VOLUMES=" + dir + "/other": true, "STROMBOLI_AGENT_ALLOWED_VOLUMES=" + here + "x": true,
		"STROMBOLI_AGENT_ALLOWED_VOLUMES=" + here + "/deeper": true,
		"STROMBOLI_AGENT_ALLOWED_VOLUMES=" + here:             false, "STROMBOLI_AGENT_ALLOWED_VOLUMES=/srv," + dir: false, "STROMBOLI_AGENT_ALLOWED_VOLUMES=" + link: false,
		"STROMBOLI_AGENT_ALLOWED_VOLUMES=/": false, "STROMBOLI_AGENT_ALLOW_ALL_VOLUMES=true": false,
	} {
		if path, err := Find([]string{"HOME=" + link, volumes}); (err == nil && path == "stromboli.yaml") != ok {
			t.Errorf("%s: %q, %v", volumes, path, err)
		}
	}
}

func TestUnknownVariables(t *testing.T) {
	_, err := Load([]string{"HOME=/h", "STROMBOLI_RESOURCES_MEMROY=1g", "STROMBOLI_XYZZY=1", "STROMBOLI_TEST_ANY=1", "STROMBOLI_URL=u", "STROMBOLI_TOKEN=t", "STROMBOLI_CA_FILE=f"})
	want := "STROMBOLI_RESOURCES_MEMROY: no such setting; did you mean STROMBOLI_RESOURCES_MEMORY?; docs/CONFIGURATION.md lists them\n" +
		"STROMBOLI_XYZZY: no such setting; docs/CONFIGURATION.md lists them"
	if err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"memry", "memory", 1}, {"memroy", "memory", 1}, {"abc", "xyz", 3}, {strings.Repeat("a", 101), "a", 100}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// TestNoEffect: what can't have an effect is told of, wherever it was set, and
// nothing else is.
func TestNoEffect(t *testing.T) {
	for _, c := range []struct {
		set   string
		warns bool
	}{
		{"COMPOSE_ALLOW_PRIVILEGED=true", true},
		{"COMPOSE_ALLOW_PRIVILEGED=false", true},
		{"COMPOSE_ALLOW_HOST_NETWORK=true", true},
		{"COMPOSE_ALLOW_HOST_VOLUMES=true", true},
		{"COMPOSE_BUILD_TIMEOUT=10m", true},
		{"COMPOSE_HEALTH_TIMEOUT=2m", true},
		{"COMPOSE_STACK_TTL=1h", true},
		{"AGENT_MOUNT_CLAUDE_CLI=false", true},
		{"AGENT_MOUNT_CLAUDE_CLI=true", false},
		{"AGENT_CLI_IMAGE=i", true},
		{"AGENT_CLI_IMAGE_TAG=t", true},
		{"AGENT_AUTO_PULL_CLI=false", true},
		{"AGENT_AUTO_PULL_CLI=true", false},
		{"AGENT_IMAGE=i", false},
		{"QUEUE_MAX=1", false},
		{"AGENT_IMAGE_TAG=t", true},
	} {
		name, _, _ := strings.Cut(prefix+c.set, "=")
		got := load(t, prefix+c.set).NoEffect()
		if c.warns && (len(got) != 1 || !strings.HasPrefix(got[0], name+" ")) || !c.warns && len(got) > 0 {
			t.Errorf("%s: %q", c.set, got)
		}
	}
	c, err := fromFile(t, "compose:\n  stack_ttl: 1h\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.NoEffect(); len(got) != 1 || !strings.Contains(got[0], ":2)") {
		t.Errorf("%q", got)
	}
}

func TestAgentImage(t *testing.T) {
	for _, c := range []struct{ image, tag, want, warns string }{
		{"", "", "", ""},
		{"", "3", "", "is not set"},
		{"python", "3", "python:3", ""},
		{"localhost:5000/python", "3", "localhost:5000/python:3", ""},
		{"python:3", "3", "python:3", ""},
		{"python:3", "4", "python:3", "names a tag"},
		{"a/python@sha256:00", "4", "a/python@sha256:00", "names a tag"},
	} {
		cfg := load(t, "STROMBOLI_AGENT_IMAGE="+c.image, "STROMBOLI_AGENT_IMAGE_TAG="+c.tag)
		notes := strings.Join(cfg.NoEffect(), "\n")
		if cfg.AgentImage() != c.want || (notes == "") != (c.warns == "") || !strings.Contains(notes, c.warns) {
			t.Errorf("%+v: %s, %q", c, cfg.AgentImage(), notes)
		}
	}
}

// TestChanged: what differs is named, by whether it takes a restart.
func TestChanged(t *testing.T) {
	a := load(t, "STROMBOLI_EGRESS_DENY=a", "STROMBOLI_LOG_LEVEL=info")
	b := load(t, "STROMBOLI_EGRESS_DENY=b", "STROMBOLI_LOG_LEVEL=debug", "STROMBOLI_QUEUE_MAX=1", "STROMBOLI_DATA_DIR=/x")
	reload, restart := a.Changed(b)
	slices.Sort(reload)
	slices.Sort(restart)
	if d := cmp.Diff([][]string{{"STROMBOLI_EGRESS_DENY", "STROMBOLI_LOG_LEVEL"}, {"STROMBOLI_DATA_DIR", "STROMBOLI_QUEUE_MAX"}}, [][]string{reload, restart}); d != "" {
		t.Error(d)
	}
}

func FuzzFile(f *testing.F) {
	f.Add("agent: {image: a, allowed_volumes: [/a]}\nqueue_max: 1\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := fromFile(t, text)
		if err == nil && c.DataDir == "" {
			t.Error("an unfinished configuration was taken")
		}
	})
}
