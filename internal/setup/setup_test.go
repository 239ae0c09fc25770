package setup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// member is one entry of a package that a test makes.
type member struct {
	header tar.Header
	body   string
}

func file(name, body string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(body))}, body}
}

func tgz(t *testing.T, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	for _, m := range members {
		if err := tw.WriteHeader(&m.header); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sri(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// registry is an npm registry with one package under every name.
type registry struct {
	*httptest.Server
	tarball   []byte
	integrity string
	token     string
	fetched   atomic.Int32
}

func newRegistry(t *testing.T, tarball []byte) *registry {
	t.Helper()
	r := &registry{tarball: tarball, integrity: sri(tarball)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.token != "" && req.Header.Get("Authorization") != "Bearer "+r.token {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		if req.URL.Path == "/npm/tarball.tgz" {
			r.fetched.Add(1)
			_, _ = w.Write(r.tarball)
			return
		}
		i := strings.LastIndexByte(req.URL.Path, '/')
		_ = json.NewEncoder(w).Encode(map[string]any{
			"version": req.URL.Path[i+1:],
			"dist":    dist{Tarball: r.URL + "/npm/tarball.tgz", Integrity: r.integrity},
		})
	}))
	t.Cleanup(r.Close)
	return r
}

// config is a host without npm whose environment names the registry.
func (r *registry) config(t *testing.T) Config {
	t.Helper()
	home := t.TempDir()
	return Config{
		CacheDir: filepath.Join(home, "cache"), Version: "9.9.9",
		Env: []string{
			"HOME=" + home, "PATH=/nonexistent", "NPM_CONFIG_REGISTRY=" + r.URL + "/npm/",
			"npm_config_globalconfig=" + filepath.Join(home, "global"), "no_proxy=127.0.0.1",
		},
	}
}

func TestCLIIsFetchedOnce(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, tgz(t, file("package/LICENSE.md", "free"), file("package/claude", "#!/bin/true")))
	cfg := r.config(t)
	var steps []Progress
	cfg.Progress = func(p Progress) { steps = append(steps, p) }
	dir, err := CLI(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dir.Binary)
	if err != nil || string(got) != "#!/bin/true" {
		t.Fatalf("binary %q, %v", got, err)
	}
	if want := filepath.Join(cfg.CacheDir, "cli", "9.9.9-glibc"); dir.Path != want {
		t.Errorf("path %s, want %s", dir.Path, want)
	}
	if st, err := os.Stat(dir.Path); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("the directory must be open to the agent's uid: %v, %v", st.Mode(), err)
	}
	if len(steps) == 0 || steps[len(steps)-1].Done == 0 {
		t.Errorf("progress without bytes: %v", steps)
	}
	r.Close() // from here on only the cache can answer
	if again, err := CLI(t.Context(), cfg); err != nil || again != dir {
		t.Errorf("cached: %v, %v", again, err)
	}
	names, err := filepath.Glob(filepath.Join(cfg.CacheDir, "cli", ".tmp-*"))
	if err != nil || len(names) != 0 {
		t.Errorf("leftovers %v, %v", names, err)
	}
}

func TestDamagedCacheIsReplaced(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, d Dir) error{
		"cut binary": func(_ *testing.T, d Dir) error { return os.Truncate(d.Binary, 3) },
		"no marker":  func(_ *testing.T, d Dir) error { return os.Remove(filepath.Join(d.Path, markerFile)) },
		"other marker": func(_ *testing.T, d Dir) error {
			return os.WriteFile(filepath.Join(d.Path, markerFile), []byte("{"), 0o600)
		},
		"not executable": func(_ *testing.T, d Dir) error {
			return os.Chmod(d.Binary, 0o644)
		},
		"a link": func(_ *testing.T, d Dir) error {
			return errors.Join(os.Remove(d.Binary), os.Symlink("/bin/true", d.Binary))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, tgz(t, file("package/claude", "binary")))
			cfg := r.config(t)
			dir, err := CLI(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(t, dir); err != nil {
				t.Fatal(err)
			}
			if _, err := CLI(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(dir.Binary); err != nil || string(got) != "binary" {
				t.Errorf("after repair: %q, %v", got, err)
			}
			if n := r.fetched.Load(); n != 2 {
				t.Errorf("fetched %d times, want 2", n)
			}
		})
	}
}

func TestTwoSetupsFetchOnce(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, tgz(t, file("package/claude", strings.Repeat("x", 1<<20))))
	cfg := r.config(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := CLI(t.Context(), cfg); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := r.fetched.Load(); n != 1 {
		t.Errorf("fetched %d times, want 1", n)
	}
}

func TestWaitingForALockEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	release, err := lockFile(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := lockFile(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	release()
	again, err := lockFile(t.Context(), path, func() { t.Error("waited for a free lock") })
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestWrongPackagesAreRefused(t *testing.T) {
	t.Parallel()
	good := tgz(t, file("package/claude", "binary"))
	for _, tt := range []struct {
		name   string
		change func(*registry, *Config)
		want   string
	}{
		{"other bytes", func(r *registry, _ *Config) { r.tarball = append(r.tarball, 0) }, "wrong integrity"},
		{"no integrity", func(r *registry, _ *Config) { r.integrity = "" }, "no SHA-512 is published"},
		{"sha1 only", func(r *registry, _ *Config) { r.integrity = "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=" }, "no SHA-512 is published"},
		{"pinned version, another package", func(_ *registry, c *Config) { c.Version = CLIVersion }, "wrong integrity"},
		{"not an archive", func(r *registry, _ *Config) { r.tarball = []byte("hello"); r.integrity = sri(r.tarball) }, "unpack"},
		{"cut archive", func(r *registry, _ *Config) { r.tarball = r.tarball[:40]; r.integrity = sri(r.tarball) }, "unpack"},
		{"no binary", func(r *registry, _ *Config) {
			r.tarball = tgz(t, file("package/other", "x"))
			r.integrity = sri(r.tarball)
		}, "has no package/claude"},
		{"a link for a binary", func(r *registry, _ *Config) {
			r.tarball = tgz(t, member{header: tar.Header{Name: "package/claude", Typeflag: tar.TypeSymlink, Linkname: "/bin/sh"}})
			r.integrity = sri(r.tarball)
		}, "not a regular file"},
		{"empty binary", func(r *registry, _ *Config) {
			r.tarball = tgz(t, file("package/claude", ""))
			r.integrity = sri(r.tarball)
		}, "0 bytes"},
		{"no credentials", func(r *registry, _ *Config) { r.token = "secret" }, "401"},
		{"version as a path", func(_ *registry, c *Config) { c.Version = "../../x" }, "not a version"},
		{"no registry", func(_ *registry, c *Config) {
			c.Env = []string{"PATH=/nonexistent", "npm_config_userconfig=/nonexistent", "npm_config_globalconfig=/nonexistent"}
		}, "names no registry"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, good)
			cfg := r.config(t)
			tt.change(r, &cfg)
			_, err := CLI(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			left, _ := filepath.Glob(filepath.Join(cfg.CacheDir, "cli", "*"))
			left = slices.DeleteFunc(left, func(path string) bool { return strings.HasPrefix(filepath.Base(path), ".lock-") })
			if len(left) != 0 {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
}

func TestHostileNamesReachNoDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	archive := filepath.Join(dir, "p.tgz")
	body := tgz(t,
		file("../../escape", "x"), file("/tmp/stromboli-absolute", "x"),
		member{header: tar.Header{Name: "package/dir", Typeflag: tar.TypeSymlink, Linkname: dir}},
		file("package/dir/through-link", "x"),
		member{header: tar.Header{Name: "package/dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		file("package/claude", "ok"))
	if err := os.WriteFile(archive, body, 0o600); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "out")
	if _, err := unpackOne(archive, "package/claude", target, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("in the directory: %v, %v; want the archive and one file", entries, err)
	}
}

func TestFilesAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if _, err := writeFile(path, 0o600, strings.NewReader("12345"), 4); err == nil {
		t.Error("five bytes passed a limit of four")
	}
}

func TestNpmIsPreferred(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pkg := filepath.Join(dir, "pkg.tgz")
	body := tgz(t, file("package/claude", "from npm"))
	if err := os.WriteFile(pkg, body, 0o600); err != nil {
		t.Fatal(err)
	}
	script(t, filepath.Join(dir, "bin", "npm"), `
case "$1" in
view) echo "`+sri(body)+`" ;;
pack) /bin/cp `+pkg+` "$4/x.tgz" ;;
esac`)
	cfg := Config{CacheDir: filepath.Join(dir, "cache"), Version: "9.9.9", Env: []string{"PATH=" + filepath.Join(dir, "bin")}}
	d, err := CLI(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(d.Binary); err != nil || string(got) != "from npm" {
		t.Errorf("got %q, %v", got, err)
	}
	// Another version under the same bytes is fine; other bytes under a pinned one aren't.
	cfg.Version = CLIVersion
	if _, err := CLI(t.Context(), cfg); !errors.Is(err, errIntegrity) {
		t.Errorf("pinned version from a strange registry: %v", err)
	}
}

func script(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultCacheDir(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  []string
		want string
	}{
		{[]string{"HOME=/h"}, "/h/.cache/stromboli"},
		{[]string{"HOME=/h", "XDG_CACHE_HOME=/x"}, "/x/stromboli"},
		{[]string{"HOME=/h", "XDG_CACHE_HOME=relative"}, "/h/.cache/stromboli"},
		{[]string{"HOME=/h", "STROMBOLI_CACHE_DIR=/c"}, "/c"},
	} {
		if got, err := DefaultCacheDir(tt.env); err != nil || got != tt.want {
			t.Errorf("%v: %q, %v; want %q", tt.env, got, err, tt.want)
		}
	}
	if _, err := DefaultCacheDir(nil); err == nil {
		t.Error("no error without a home")
	}
}

func TestCommandIsKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ready, stop := context.WithCancel(ctx)
	c := command{argv: []string{"/bin/sh", "-c", "sleep 60 & echo started; wait"}, env: []string{"PATH=/usr/bin:/bin"}, line: func(string) { stop() }}
	start := time.Now()
	if _, err := c.output(ready); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("took %v: a child held the pipe", d)
	}
}

func TestCommandErrorsCarryTheToolsWords(t *testing.T) {
	t.Parallel()
	_, err := command{argv: []string{"/bin/sh", "-c", "echo why >&2; exit 3"}}.output(t.Context())
	if err == nil || !strings.Contains(err.Error(), "why") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func ExampleCLI() {
	_, err := CLI(context.Background(), Config{CacheDir: "relative"})
	fmt.Println(err)
	// Output: setup: the cache directory must be an absolute path
}
