package e2e_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// packagesServe answers as a Go module proxy and as a Cargo registry.
func packagesServe(t *testing.T, w http.ResponseWriter, r *http.Request) {
	const module = "/go/example.org/stubmod/@v/"
	crate := packagesCrate(t)
	sum := sha256.Sum256(crate)
	switch r.URL.Path {
	case module + "list":
		_, _ = fmt.Fprintln(w, "v1.0.0")
	case module + "v1.0.0.info":
		_, _ = fmt.Fprint(w, `{"Version":"v1.0.0","Time":"2020-01-01T00:00:00Z"}`)
	case module + "v1.0.0.mod":
		_, _ = fmt.Fprintln(w, "module example.org/stubmod")
	case module + "v1.0.0.zip":
		_, _ = w.Write(packagesModule(t))
	case "/cargo/config.json":
		_ = json.NewEncoder(w).Encode(map[string]string{"dl": "http://" + r.Host + "/crates"})
	case "/cargo/st/ub/stubcrate":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"name": "stubcrate", "vers": "1.0.0", "deps": []any{}, "features": map[string]any{}, "yanked": false, "cksum": hex.EncodeToString(sum[:]),
		})
	case "/crates/stubcrate/1.0.0/download":
		_, _ = w.Write(crate)
	default:
		http.NotFound(w, r)
	}
}

func packagesModule(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range map[string]string{"go.mod": "module example.org/stubmod\n", "stub.go": "package stubmod\n\nconst Works = \"go works\"\n"} {
		w, err := z.Create("example.org/stubmod@v1.0.0/" + name)
		if err != nil {
			t.Error(err)
			continue
		}
		_, _ = w.Write([]byte(data)) // a buffer takes everything
	}
	_ = z.Close()
	return b.Bytes()
}

// packagesCrate is the same at every call: its checksum is told before it is
// fetched.
func packagesCrate(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range []struct{ name, data string }{
		{"Cargo.toml", "[package]\nname = \"stubcrate\"\nversion = \"1.0.0\"\n"},
		{"src/lib.rs", "pub const WORKS: &str = \"cargo works\";\n"},
	} {
		if err := w.WriteHeader(&tar.Header{Name: "stubcrate-1.0.0/" + f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			t.Error(err)
		}
		_, _ = w.Write([]byte(f.data)) // a buffer takes everything
	}
	_, _ = w.Close(), z.Close()
	return b.Bytes()
}

// packagesTools fetches with Go's and Rust's tools from a host and port; what
// they are told besides is what a registry of one's own needs anywhere.
const packagesTools = tryTools + `
HOST=$1
gopher() (
  export PATH=/tools/go/bin:$PATH GOROOT=/tools/go GOTOOLCHAIN=local GOPROXY=http://$HOST/go GOSUMDB=off GOPATH=$PWD/gopath GOCACHE=$PWD/gocache GOFLAGS=-modcacherw
  mkdir m && cd m
  printf 'module example.org/m\n' > go.mod
  printf 'package m\n\nimport "example.org/stubmod"\n\nconst Said = stubmod.Works\n' > m.go
  go get example.org/stubmod@v1.0.0 >&2 && go mod download >&2 && go build ./... >&2 && grep -o 'go works' ../gopath/pkg/mod/example.org/stubmod@v1.0.0/stub.go
)
crab() (
  export CARGO_HOME=$PWD/cargo RUSTC_BOOTSTRAP=1 CARGO_UNSTABLE_SPARSE_REGISTRY=true CARGO_NET_RETRY=0
  mkdir -p c/src && cd c
  printf '[registries]\nlocal = { index = "sparse+http://%s/cargo/" }\n' "$HOST" > ../config.toml
  mkdir .cargo && mv ../config.toml .cargo/
  printf '[package]\nname = "c"\nversion = "0.1.0"\n\n[dependencies]\nstubcrate = { version = "1", registry = "local" }\n' > Cargo.toml
  touch src/lib.rs
  "$(echo /tools/cargo/usr/lib/*/ld-linux* /tools/cargo/lib/*/ld-linux* | tr ' ' '\n' | grep -v '[*]' | head -n1)" \
    --library-path "$(echo /tools/cargo/lib/*-linux-gnu /tools/cargo/usr/lib/*-linux-gnu | tr ' ' ':')" /tools/cargo/usr/bin/cargo vendor >&2 &&
    grep -o 'cargo works' vendor/stubcrate/src/lib.rs
)
try go gopher
[ -d /tools/cargo ] && try cargo crab
`

// TestPackageTools: Go and Cargo fetch through the proxy without settings of
// their own, what configuration allows and nothing else. Go never asks a proxy
// for a loopback address, so the servers have names here, which only egress can
// resolve: it runs with a hosts file of its own.
func TestPackageTools(t *testing.T) {
	t.Parallel()
	if suite.rootless {
		enginetest.Missing(t, "root", "a hosts file of egress's own takes a mount")
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { packagesServe(t, w, r) })
	n := &networkSite{}
	n.plain = networkServer(t, n, handler)
	n.plain.Start()
	_, port, err := net.SplitHostPort(n.host())
	if err != nil {
		t.Fatal(err)
	}
	s := prepare(t, "STROMBOLI_EGRESS_EXTERNAL=true", "STROMBOLI_EGRESS_ALLOW=packages.test:"+port)
	packagesEgress(t, s, "127.0.0.2 packages.test shut.test\n")
	s.up()
	want := map[string]string{"go": "go works"}
	packagesGo(t, filepath.Join(s.volumes, "tools", "go"))
	if packagesCargo(t, filepath.Join(s.volumes, "tools", "cargo")) {
		want["cargo"] = "cargo works"
	}
	tools := ownershipAt(filepath.Join(s.volumes, "tools")+":/tools:ro", "")
	_, out := s.probe("bash /probe/tools.sh packages.test:"+port+"\necho and; bash /probe/tools.sh shut.test:"+port, map[string]string{"tools.sh": packagesTools}, tools)
	allowed, refused, _ := strings.Cut(out, "and\n")
	for tool, w := range want {
		if got := probeLines(allowed)[tool]; got != w {
			t.Errorf("%s got %q, want %q", tool, got, w)
		}
		if got := probeLines(refused)[tool]; got != "refused 403" {
			t.Errorf("%s was not refused what isn't allowed: %q", tool, got)
		}
	}
}

// packagesEgress runs egress with a hosts file of its own.
func packagesEgress(t *testing.T, s *server, hosts string) {
	t.Helper()
	file := filepath.Join(s.dir, "hosts")
	if err := os.WriteFile(file, []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.data, "egress")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.data, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount --bind "$1" /etc/hosts && exec "$2" egress --stay --dir "$3"`, "sh", file, suite.bin, dir)
	cmd.Env, cmd.Stdout, cmd.Stderr = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}, s.log, s.log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

// packagesGo copies what fetching and compiling takes of this machine's Go.
func packagesGo(t *testing.T, to string) {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	from := strings.TrimSpace(string(root))
	tools, err := exec.CommandContext(t.Context(), "go", "env", "GOTOOLDIR").Output()
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(from, strings.TrimSpace(string(tools)))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin/go", "go.env", "VERSION", "pkg/include", "src/go.mod", "src/vendor", "src/errors", rel + "/compile", rel + "/asm", rel + "/link"} {
		packagesCopy(t, filepath.Join(from, name), filepath.Join(to, name))
	}
}

// packagesCargo copies Cargo and its libraries, and tells whether it is there.
func packagesCargo(t *testing.T, to string) bool {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Log("Cargo comes from Debian's or Ubuntu's packages: it is left out")
		return false
	}
	kept := filepath.Join(suite.cache, "tests", "cargo")
	if _, err := os.Stat(kept); err != nil {
		enginetest.Missing(t, "podman", "Cargo is not there: run `make host-test`")
	}
	packagesCopy(t, kept, to)
	return true
}

func packagesCopy(t *testing.T, from, to string) {
	t.Helper()
	if _, err := os.Stat(from); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-rL", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
