package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// looks are facts by image id; it counts the looks.
type looks struct {
	mu    sync.Mutex
	facts map[string]stromboli.ImageFacts // by id, of images that can be looked into
	known map[string]bool                 // by digest
	n     int
}

func (l *looks) KnownFacts(key string) (stromboli.ImageFacts, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.facts[strings.TrimPrefix(key, "sha256:")], l.known[key]
}

func (l *looks) FindFacts(_ context.Context, id string) (stromboli.ImageFacts, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	l.known["sha256:"+id] = true
	return l.facts[id], nil
}

type fixture struct {
	*Library
	engine *enginetest.Fake
	looks  *looks
}

func newFixture(t *testing.T, change ...func(*Config)) fixture {
	t.Helper()
	f := fixture{engine: enginetest.NewFake(enginetest.FakeConfig{}), looks: &looks{facts: map[string]stromboli.ImageFacts{}, known: map[string]bool{}}}
	patterns, err := policy.ParseImagePatterns([]string{"registry.example/**"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Engine: f.engine, Facts: f.looks, Patterns: patterns, PullTimeout: time.Minute, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	f.Library = New(cfg)
	t.Cleanup(f.engine.Close)
	t.Cleanup(f.Close)
	return f
}

func archive(t *testing.T, ref string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "x", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return enginetest.Archive(b.Bytes(), ref)
}

const tool = "registry.example/team/tool:1"

func TestRanks(t *testing.T) {
	broken := stromboli.ImageFacts{Unusable: "has no bash"}
	label := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, tt := range []struct {
		name   string
		labels map[string]string
		facts  stromboli.ImageFacts
		known  bool
		want   stromboli.ImageRank
	}{
		{"declared", label(stromboli.LabelCompatible, "true"), stromboli.ImageFacts{Libc: "musl"}, true, 1},
		{"declared, and has the CLI", label(stromboli.LabelCompatible, "true", stromboli.LabelCLI, "true"), stromboli.ImageFacts{Libc: "glibc"}, true, 1},
		{"has the CLI", label(stromboli.LabelCLI, "true"), stromboli.ImageFacts{Libc: "glibc"}, true, 2},
		{"denied", label(stromboli.LabelCompatible, "false"), stromboli.ImageFacts{Libc: "glibc"}, true, 3},
		{"glibc", nil, stromboli.ImageFacts{Libc: "glibc"}, true, 3},
		{"musl", nil, stromboli.ImageFacts{Libc: "musl"}, true, 3},
		{"neither", nil, stromboli.ImageFacts{}, true, 3},
		{"broken", nil, broken, true, 4},
		{"declared, and broken", label(stromboli.LabelCompatible, "true"), broken, true, 4},
		{"unseen", nil, stromboli.ImageFacts{}, false, 4},
		{"declared, and unseen", label(stromboli.LabelCompatible, "true"), stromboli.ImageFacts{}, false, 1},
	} {
		if got, why := rank(tt.labels, tt.facts, tt.known); got != tt.want || why == "" {
			t.Errorf("%s: %d (%s), want %d", tt.name, got, why, tt.want)
		}
	}
	i := describe(engine.Image{Labels: label(stromboli.LabelTools, " git, ,node ,", stromboli.LabelDescription, strings.Repeat("é", 5000))}, stromboli.ImageFacts{CLI: true}, true)
	if !slices.Equal(i.Tools, []string{"git", "node"}) || !i.CLI || len(i.Description) > maxDescription+4 {
		t.Errorf("%v %v %d", i.Tools, i.CLI, len(i.Description))
	}
}

func TestList(t *testing.T) {
	f := newFixture(t)
	for _, ref := range []string{"localhost/b:1", "localhost/a:1", "localhost/broken:1"} {
		if _, err := f.engine.ImageLoad(t.Context(), bytes.NewReader(archive(t, ref))); err != nil {
			t.Fatal(err)
		}
		i, err := f.engine.ImageInspect(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		facts := stromboli.ImageFacts{Libc: "glibc"}
		if ref == "localhost/broken:1" {
			facts.Unusable = "has no bash"
		}
		f.looks.facts[i.ID] = facts
	}
	for range 2 {
		list, err := f.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list {
			got = append(got, i.Repository+" "+i.Tag)
			if found, err := f.Get(t.Context(), i.Repository+":"+i.Tag); err != nil || found.Rank != i.Rank || found.Repository != i.Repository || found.Tag != i.Tag {
				t.Errorf("%+v is listed, and found as %+v, %v", i, found, err)
			}
		}
		if !slices.Equal(got, []string{"localhost/a 1", "localhost/b 1", "localhost/broken 1"}) || list[2].Rank != 4 || list[2].Compatible() || !list[0].Compatible() {
			t.Errorf("%v", got)
		}
	}
	for _, name := range []string{"localhost/none:1", "", "-x", "a b", "..", "a/../b", "x%00", strings.Repeat("x", 600)} {
		if _, err := f.Get(t.Context(), name); !errors.Is(err, stromboli.NotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// With no time to look, what is new comes last and says so; what is known
	// costs no look.
	hasty := newFixture(t, func(c *Config) { c.Engine, c.LookTime = f.engine, time.Nanosecond })
	hasty.looks.known = map[string]bool{}
	list, err := hasty.List(t.Context())
	if err != nil || len(list) != 3 || list[0].Rank != 4 || !strings.Contains(list[0].RankReason, "ask again") || hasty.looks.n != 0 {
		t.Errorf("%+v, %v, %d looks", list, err, hasty.looks.n)
	}
}

func TestSearch(t *testing.T) {
	f := newFixture(t)
	f.engine.Offer("docker.io/library/python", enginetest.Offer{})
	f.engine.Offer(tool, enginetest.Offer{})
	for term, want := range map[string]int{"library/py": 1, "registry.example/team": 1} {
		found, err := f.Search(t.Context(), stromboli.ImageQuery{Term: term, Limit: 5})
		if err != nil || len(found) != want {
			t.Errorf("%s: %v, %v", term, found, err)
		}
	}
	for term, code := range map[string]stromboli.Code{
		"169.254.169.254/latest": stromboli.ImageForbidden, "localhost:22/x": stromboli.ImageForbidden,
		"": stromboli.Invalid, "-x": stromboli.Invalid, "a b": stromboli.Invalid, "//x": stromboli.Invalid,
	} {
		if _, err := f.Search(t.Context(), stromboli.ImageQuery{Term: term, Limit: 5}); stromboli.CodeOf(err) != code {
			t.Errorf("%q: %v", term, err)
		}
	}
}

func TestLogins(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	auth := func(userpass string) string { return base64.StdEncoding.EncodeToString([]byte(userpass)) }
	first := write("first", `{"auths":{"quay.io":{"auth":"`+auth("a:1")+`"},"quay.io/team":{"auth":"`+auth("b:2:3")+`"},"empty.io":{},"tok.io":{"auth":"`+auth("t:")+`","identitytoken":"it"}}}`)
	second := write("second", `{"auths":{"quay.io":{"auth":"`+auth("z:9")+`"},"https://index.docker.io/v1/":{"auth":"`+auth("d:4")+`"}},"credHelpers":{"helped.io":"pass"}}`)
	files := []string{filepath.Join(dir, "missing"), first, second}
	for repository, want := range map[string]*engine.Login{
		"quay.io/team/x":           {Username: "b", Password: "2:3"},
		"quay.io/teams/x":          {Username: "a", Password: "1"},
		"docker.io/library/python": {Username: "d", Password: "4"},
		"docker.io":                {Username: "d", Password: "4"},
		"tok.io/x":                 {Username: "t", IdentityToken: "it"},
		"empty.io/x":               nil,
		"ghcr.io/x":                nil,
	} {
		got, err := findLogin(files, repository)
		if err != nil || (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%s: %+v, %v", repository, got, err)
		}
	}
	if _, err := findLogin(files, "helped.io/x"); err == nil || !strings.Contains(err.Error(), "podman login --authfile") {
		t.Errorf("a helper: %v", err)
	}
	for _, text := range []string{`not json secret-text`, `{"auths":{"quay.io":{"auth":"secret-text!"}}}`, strings.Repeat(" ", maxAuthFile+1)} {
		if _, err := findLogin([]string{write("bad", text)}, "quay.io/x"); err == nil || strings.Contains(err.Error(), "secret-text") {
			t.Errorf("%.20s: %v", text, err)
		}
	}
	// What is wrong with them is not for callers.
	f := newFixture(t, func(c *Config) { c.AuthFiles = []string{write("bad", "x")} })
	f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool)})
	_, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil)
	if e, ok := errors.AsType[*stromboli.Error](err); !ok || e.Code != stromboli.RegistryFailed || strings.Contains(e.Message, dir) {
		t.Errorf("%v", err)
	}
	// A good one goes along.
	f = newFixture(t, func(c *Config) {
		c.AuthFiles = []string{write("good", `{"auths":{"registry.example":{"auth":"`+auth("u:p")+`"}}}`)}
	})
	f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool)})
	if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || *f.engine.Pulls()[0].Login != (engine.Login{Username: "u", Password: "p"}) {
		t.Errorf("%v %+v", err, f.engine.Pulls())
	}
}
