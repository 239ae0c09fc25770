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
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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

// TestOnePullForMany: however many ask, the registry is asked once, and all
// learn how far it is and what came of it.
func TestOnePullForMany(t *testing.T) {
	f := newFixture(t)
	gate := make(chan struct{})
	f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool), Gate: gate})
	const many = 20
	var told, done sync.WaitGroup
	told.Add(many)
	results := make([]stromboli.PulledImage, many)
	for i := range many {
		done.Go(func() {
			var once sync.Once
			var err error
			results[i], err = f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, func(p stromboli.ImageProgress) {
				if p.Stage == stromboli.StageDownloading && p.Image == tool && p.Current == 1 {
					once.Do(told.Done)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	told.Wait()
	close(gate)
	done.Wait()
	if n := len(f.engine.Pulls()); n != 1 {
		t.Errorf("%d pulls", n)
	}
	for _, r := range results {
		if r != results[0] || r.Name != tool || r.ID == "" {
			t.Errorf("%+v", r)
		}
	}
	// Afterwards it is another pull: the name may mean another image by now.
	if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != 2 {
		t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
	}
}

// TestLeavingAPull: one who goes away doesn't end the others' pull, the last one
// does, unless somebody wished it kept.
func TestLeavingAPull(t *testing.T) {
	for _, keep := range []bool{false, true} {
		f := newFixture(t)
		gate := make(chan struct{})
		f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool), Gate: gate})
		ask := func() (leave context.CancelFunc, result chan error) {
			ctx, cancel := context.WithCancel(t.Context())
			result = make(chan error, 1)
			begun := make(chan struct{})
			go func() {
				var once sync.Once
				_, err := f.Pull(ctx, stromboli.ImageWish{Name: tool, Keep: keep}, func(p stromboli.ImageProgress) {
					if p.Stage == stromboli.StageDownloading {
						once.Do(func() { close(begun) })
					}
				})
				result <- err
			}()
			<-begun
			return cancel, result
		}
		leave1, result1 := ask()
		leave2, result2 := ask()
		leave1()
		if err := <-result1; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		leave2()
		if err := <-result2; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got %v", err)
		}
		if !keep {
			// The pull ends, and another one may begin and succeed.
			close(gate)
			if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != 2 {
				t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
			}
			continue
		}
		leave3, result3 := ask() // joins
		defer leave3()
		close(gate)
		if err := <-result3; err != nil || len(f.engine.Pulls()) != 1 {
			t.Errorf("%v, %d pulls", err, len(f.engine.Pulls()))
		}
	}
}

func TestPullFails(t *testing.T) {
	never := make(chan struct{})
	f := newFixture(t, func(c *Config) { c.PullTimeout = 50 * time.Millisecond })
	fault := func(kind error, text string) enginetest.Offer {
		return enginetest.Offer{Err: &engine.Error{Op: "pull", Message: text, Kind: kind}}
	}
	f.engine.Offer("registry.example/slow:1", enginetest.Offer{Gate: never})
	f.engine.Offer("registry.example/cut:1", fault(engine.ErrRegistry, "unexpected EOF"))
	f.engine.Offer("registry.example/private:1", fault(engine.ErrDenied, "unauthorized"))
	f.engine.Offer("registry.example/full:1", fault(engine.ErrStorageFull, "no space left on device"))
	f.engine.Offer("registry.example/down:1", fault(engine.ErrUnavailable, "gone"))
	for _, tt := range []struct {
		name, platform string
		code           stromboli.Code
		says           string
	}{
		{"registry.example/slow:1", "", stromboli.RegistryFailed, "within 50ms (STROMBOLI_AGENT_PULL_TIMEOUT)"},
		{"registry.example/cut:1", "", stromboli.RegistryFailed, "unexpected EOF"},
		{"registry.example/private:1", "", stromboli.RegistryFailed, "podman login registry.example"},
		{"registry.example/full:1", "", stromboli.StorageFull, "disk is full"},
		{"registry.example/down:1", "", stromboli.EngineDown, "engine"},
		{"registry.example/none:1", "linux/arm64", stromboli.NotFound, "for linux/arm64"},
		{"elsewhere.example/x", "", stromboli.ImageForbidden, "elsewhere.example/x:latest"},
		{"tool", "", stromboli.ImageForbidden, "docker.io/library/tool:latest"},
		{"No such name", "", stromboli.Invalid, "image: "},
		{tool, "arm64", stromboli.Invalid, "platform: "},
		{tool, "linux/../x", stromboli.Invalid, "platform: "},
	} {
		_, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tt.name, Platform: tt.platform}, nil)
		if stromboli.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v, want %s that says %q", tt.name, tt.platform, err, tt.code, tt.says)
		}
	}
	if n := len(f.flights); n != 0 {
		t.Errorf("%d pulls are left", n)
	}
}

// TestBrokenConnection: a pull that breaks off is begun again, a few times.
func TestBrokenConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.engine.Offer(tool, enginetest.Offer{Err: &engine.Error{Op: "pull", Message: "unexpected EOF", Kind: engine.ErrInterrupted}})
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.RegistryFailed) || len(f.engine.Pulls()) != pullAttempts {
			t.Errorf("%v after %d attempts", err, len(f.engine.Pulls()))
		}
		go func() {
			<-time.After(pullPause / 2) // of the bubble's clock: between two attempts
			f.engine.Offer(tool, enginetest.Offer{Archive: archive(t, tool)})
		}()
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); err != nil || len(f.engine.Pulls()) != pullAttempts+2 {
			t.Errorf("%v after %d attempts", err, len(f.engine.Pulls()))
		}
	})
}

// TestTooManyPulls: four go on at a time, and no more than so many wait.
func TestTooManyPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := errors.New("no room")
		full := false
		f := newFixture(t, func(c *Config) {
			c.Room = func() error {
				if full {
					return room
				}
				return nil
			}
		})
		gate := make(chan struct{})
		name := func(i int) string { return "registry.example/x" + strconv.Itoa(i) + ":1" }
		var all sync.WaitGroup
		for i := range maxFlights {
			f.engine.Offer(name(i), enginetest.Offer{Archive: archive(t, name(i)), Gate: gate})
			all.Go(func() {
				if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: name(i)}, nil); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := len(f.engine.Pulls()); n != maxPulls {
			t.Errorf("%d pulls at a time", n)
		}
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.QueueFull) {
			t.Errorf("one more: %v", err)
		}
		// Nobody's limit runs while it waits for its turn.
		<-time.After(30 * time.Second)
		close(gate)
		all.Wait()
		full = true
		if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: name(0)}, nil); !errors.Is(err, room) {
			t.Errorf("without room: %v", err)
		}
	})
}

func TestCloseEndsPulls(t *testing.T) {
	f := newFixture(t)
	f.engine.Offer(tool, enginetest.Offer{Gate: make(chan struct{})})
	result := make(chan error, 1)
	begun := make(chan struct{})
	var once sync.Once
	go func() {
		_, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool, Keep: true}, func(p stromboli.ImageProgress) {
			if p.Stage == stromboli.StageDownloading {
				once.Do(func() { close(begun) })
			}
		})
		result <- err
	}()
	<-begun
	f.Close()
	if err := <-result; !errors.Is(err, stromboli.Draining) {
		t.Error(err)
	}
	if _, err := f.Pull(t.Context(), stromboli.ImageWish{Name: tool}, nil); !errors.Is(err, stromboli.Draining) {
		t.Error(err)
	}
}

func TestInsecureRegistries(t *testing.T) {
	f := newFixture(t, func(c *Config) {
		c.Patterns, _ = policy.ParseImagePatterns([]string{"*"})
		c.Insecure = []string{"lab.example:5000", "plain.example"}
	})
	for name, want := range map[string]bool{
		"127.0.0.1:5000/x": true, "localhost:5000/x": true, "127.9.9.9/x": true,
		"lab.example:5000/x": true, "lab.example/x": false, "plain.example:1/x": true, "ghcr.io/x/y": false, "python": false, "127.0.0.1.nip.io/x": false,
	} {
		_, spec, err := f.wanted(stromboli.ImageWish{Name: name})
		if err != nil || spec.Insecure != want {
			t.Errorf("%s: %v, %v", name, spec.Insecure, err)
		}
	}
}

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
