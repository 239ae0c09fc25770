package setup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakePodman is an engine whose store is a directory with one file per image.
// It logs its calls, one a line.
func fakePodman(t *testing.T, dir, registryAnswers string) ImageConfig {
	t.Helper()
	store := filepath.Join(dir, "store")
	if err := os.MkdirAll(store, 0o700); err != nil {
		t.Fatal(err)
	}
	script(t, filepath.Join(dir, "podman"), `
store=`+store+`
echo "$@" >> `+dir+`/calls
for last; do :; done
file=$store/$(echo "$last" | tr '/:' '__')
case "$1" in
image)
  [ -e "$file" ] || { echo "no such image" >&2; exit 125; }
  /bin/cat "$file" ;;
pull) `+registryAnswers+` ;;
import) echo base > "$file" ;;
build)
  while [ $# -gt 0 ]; do
    case "$1" in
    -t) name=$2 ;;
    --label) case "$2" in *content=*) key=${2#*=} ;; *base=*) how=${2#*=} ;; esac ;;
    esac
    shift
  done
  [ -s "$last/packages/node.tgz" ] && [ -s "$last/packages/npm.tgz" ] && [ -s "$last/host/apt.conf" ] || exit 9
  echo "STEP 1/1: FROM"
  printf '[{"Id":"sha-id","Digest":"sha256:d","Labels":{"io.stromboli.agent.content":"%s","io.stromboli.agent.base":"%s"}}]' \
    "$key" "$how" > "$store/$(echo "$name" | tr '/:' '__')" ;;
save)
  while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
  { echo "$last"; /bin/cat "$file"; } > "$out" ;;
load)
  name=$(/usr/bin/head -1 "$last")
  /usr/bin/tail -n +2 "$last" > "$store/$(echo "$name" | tr '/:' '__')" ;;
esac`)
	r := newRegistry(t, tgz(t, file("package/bin/node", "x")))
	cfg := r.config(t)
	cfg.CacheDir = filepath.Join(dir, "cache")
	cfg.Env = append(cfg.Env, "PATH="+dir+":/usr/bin:/bin")
	// A host with an npm would ask the real registry.
	script(t, filepath.Join(dir, "npm"), `
case "$1" in
view) echo "`+r.integrity+`" ;;
pack) /bin/sh -c 'printf x > "$0/x.tgz"' "$4" ;;
esac`)
	return ImageConfig{Config: cfg, Podman: []string{"podman"}, PodmanEnv: append(cfg.Env, "CONTAINERS_CONF=/dev/null")}
}

func calls(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for line := range strings.Lines(string(text)) {
		verbs = append(verbs, strings.Fields(line)[0])
	}
	return verbs
}

func TestImageFlow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := fakePodman(t, dir, "exit 0").withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	// The pinned Node.js can't come from a test's registry; the refusal is the point.
	if _, err := AgentImage(t.Context(), c); err == nil || !strings.Contains(err.Error(), "integrity") {
		t.Fatalf("a strange Node.js was taken: %v", err)
	}
	work := t.TempDir()
	for _, name := range []string{"node.tgz", "npm.tgz"} {
		path := filepath.Join(work, "context", "packages", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := c.pull(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.buildOn(t.Context(), work, b); err != nil {
		t.Fatal(err)
	}
	img, ok := c.inspect(t.Context())
	if !ok || img.How != "registry "+BaseImage || img.Digest != "sha256:d" || img.Name != c.name() {
		t.Fatalf("built %+v, %v", img, ok)
	}
	if err := os.MkdirAll(filepath.Join(c.CacheDir, "images"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.save(t.Context()); err != nil {
		t.Fatal(err)
	}

	// An emptied store gets it from the archive, without a build.
	if err := os.RemoveAll(filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := len(calls(t, dir))
	again, err := AgentImage(t.Context(), c)
	if err != nil || again != img {
		t.Fatalf("from the archive: %+v, %v", again, err)
	}
	if got := calls(t, dir)[before:]; slices.Contains(got, "build") || slices.Contains(got, "pull") {
		t.Errorf("calls %v: the archive was there", got)
	}

	// A cut archive is as good as none.
	if err := os.Truncate(c.archive(), 3); err != nil {
		t.Fatal(err)
	}
	if c.load(t.Context()) {
		t.Error("a cut archive was loaded")
	}
}

func TestImageNameFollowsContent(t *testing.T) {
	t.Parallel()
	name := func(change func(*ImageConfig)) string {
		cfg := ImageConfig{Config: Config{CacheDir: "/c", Arch: "amd64"}}
		change(&cfg)
		n, err := AgentImageName(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	plain := name(func(*ImageConfig) {})
	if plain != name(func(c *ImageConfig) { c.CacheDir = "/other"; c.Podman = []string{"x"} }) {
		t.Error("the name depends on where things are")
	}
	for what, change := range map[string]func(*ImageConfig){
		"Containerfile": func(c *ImageConfig) { c.Containerfile = "FROM scratch" },
		"base":          func(c *ImageConfig) { c.Base = Bootstrap },
		"arch":          func(c *ImageConfig) { c.Arch = "arm64" },
	} {
		if name(change) == plain {
			t.Errorf("another %s has the same name", what)
		}
	}
}

func TestHostFilesOfARegistryBase(t *testing.T) {
	t.Parallel()
	c, err := ImageConfig{Config: Config{CacheDir: "/c", Env: []string{"PATH=/nonexistent", "SSL_CERT_FILE=/nonexistent"}}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "host")
	if err := c.hostFiles(t.Context(), dir, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sources.list")); err == nil {
		t.Error("a registry's base must keep its own package sources")
	}
	if _, err := os.Stat(filepath.Join(dir, "apt.conf")); err != nil {
		t.Error(err)
	}
}

func TestSourceLines(t *testing.T) {
	t.Parallel()
	rings := t.TempDir()
	if err := os.WriteFile(filepath.Join(rings, "debian-archive-keyring.gpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := sourceLines(`http://mirror.example/debian|bookworm|main|Debian
http://mirror.example/debian|bookworm|main|Debian
http://mirror.example/security|bookworm-security|main|Debian
http://vendor.example/apt|bookworm|stable|Vendor
http://mirror.example/debian|trixie|main|Debian
http://fresh.example/debian|bookworm-updates|main|$(ORIGIN)
http://ubuntu.example|bookworm|main|Ubuntu
nonsense
`, "bookworm", rings)
	ring := filepath.Join(rings, "debian-archive-keyring.gpg")
	want := []string{
		"deb [signed-by=" + ring + "] http://mirror.example/debian bookworm main",
		"deb [signed-by=" + ring + "] http://mirror.example/security bookworm-security main",
		"deb http://fresh.example/debian bookworm-updates main",
		"deb http://ubuntu.example bookworm main",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestAcquireOptions(t *testing.T) {
	t.Parallel()
	got := acquireOptions(`Acquire "";
Acquire::Check-Date "false";
Acquire::IndexTargets::deb::Packages::MetaKey "x";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::Proxy "";
Acquire::http::Proxy-Auto-Detect "/usr/bin/script";
Acquire::https::Timeout "10";
`)
	want := []string{`Acquire::Check-Date "false"`, `Acquire::http::Proxy "http://proxy.example:3128"`, `Acquire::https::Timeout "10"`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOldArchivesGo(t *testing.T) {
	t.Parallel()
	c, err := ImageConfig{Config: Config{CacheDir: t.TempDir()}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.CacheDir, "images"), 0o700); err != nil {
		t.Fatal(err)
	}
	files := []string{c.archive()}
	for _, key := range []string{"1", "2", "3"} {
		files = append(files, filepath.Join(c.CacheDir, "images", "agent-"+key+".tar"))
	}
	for _, f := range files {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f+".json", nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.dropOldArchives(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(c.CacheDir, "images", "agent-*.tar"))
	if err != nil || len(left) > archivesKept+1 || !slices.Contains(left, c.archive()) {
		t.Errorf("left %v, %v", left, err)
	}
}
