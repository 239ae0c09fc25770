package e2e_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tomblancdev/stromboli/internal/claude"
)

// networkSite is a server on the host that tools of the sandbox talk to: files,
// a git repository, an npm registry, a Python index. It listens on an address
// that NO_PROXY doesn't name, so that the tools ask the proxy for it.
type networkSite struct {
	plain, tls *httptest.Server
	requests   atomic.Int64 // of both
	conns      atomic.Int64
}

func (n *networkSite) host() string    { return n.plain.Listener.Addr().String() }
func (n *networkSite) tlsHost() string { return n.tls.Listener.Addr().String() }
func (n *networkSite) port() string    { _, p, _ := net.SplitHostPort(n.host()); return p }

func newNetworkSite(t *testing.T, dir string) *networkSite {
	t.Helper()
	n := &networkSite{}
	n.plain = networkServer(t, n, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.requests.Add(1)
		n.serve(t, dir, w, r)
	}))
	n.tls = networkServer(t, n, n.plain.Config.Handler)
	n.plain.Start()
	n.tls.StartTLS()
	return n
}

func networkServer(t *testing.T, n *networkSite, h http.Handler) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	_ = s.Listener.Close()
	s.Listener = l
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.conns.Add(1)
		}
	}
	t.Cleanup(s.Close)
	return s
}

func (n *networkSite) serve(t *testing.T, dir string, w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/hello":
		_, _ = fmt.Fprintf(w, "hello to %s with %q\n", r.Host, r.Header.Get("Authorization"))
	case "/npm/stub-pkg":
		networkNpmIndex(t, w, "http://"+r.Host+"/npm/stub-pkg.tgz")
	case "/npm/stub-pkg.tgz":
		_, _ = w.Write(networkNpm(t))
	case "/simple/stubpkg/":
		networkPipIndex(w)
	case "/" + networkWheelName:
		_, _ = w.Write(networkWheel(t))
	case "/to":
		http.Redirect(w, r, r.URL.Query().Get("url"), http.StatusFound)
	default:
		http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
	}
}

// networkNpm is a package as npm packs it, the same at every call: its checksum
// is told before it is fetched.
func networkNpm(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, f := range []struct{ name, data string }{
		{"package/package.json", `{"name":"stub-pkg","version":"1.0.0","main":"index.js"}`},
		{"package/index.js", "module.exports = 'npm works'\n"},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			t.Error(err)
		}
		_, _ = w.Write([]byte(f.data)) // a buffer takes everything
	}
	_, _ = w.Close(), z.Close()
	return b.Bytes()
}

const networkWheelName = "stubpkg-1.0.0-py3-none-any.whl"

// networkWheel is a Python package.
func networkWheel(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range []struct{ name, data string }{
		{"stubpkg.py", "WORKS = 'pip works'\n"},
		{"stubpkg-1.0.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: stubpkg\nVersion: 1.0.0\n"},
		{"stubpkg-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"stubpkg-1.0.0.dist-info/RECORD", "stubpkg.py,,\nstubpkg-1.0.0.dist-info/METADATA,,\nstubpkg-1.0.0.dist-info/WHEEL,,\nstubpkg-1.0.0.dist-info/RECORD,,\n"},
	} {
		w, err := z.Create(f.name)
		if err != nil {
			t.Error(err)
			continue
		}
		_, _ = w.Write([]byte(f.data)) // a buffer takes everything
	}
	_ = z.Close()
	return b.Bytes()
}

// networkRepository makes a bare git repository that any file server can serve.
func networkRepository(t *testing.T, dir string) {
	t.Helper()
	work := t.TempDir()
	probeWrite(t, work, map[string]string{"README": "git works\n"})
	for _, args := range [][]string{
		{"-C", work, "init", "-q", "-b", "main"},
		{"-C", work, "add", "README"},
		{"-C", work, "-c", "user.name=t", "-c", "user.email=t@t.invalid", "commit", "-qm", "first"},
		{"clone", "-q", "--bare", work, filepath.Join(dir, "repo.git")},
		{"-C", filepath.Join(dir, "repo.git"), "update-server-info"},
	} {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v, %s", args, err, out)
		}
	}
}

// networkNpmIndex answers what npm asks of a package first.
func networkNpmIndex(t *testing.T, w http.ResponseWriter, tarball string) {
	sum := sha512.Sum512(networkNpm(t))
	version := map[string]any{"name": "stub-pkg", "version": "1.0.0", "dist": map[string]string{
		"tarball": tarball, "integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
	}}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"name": "stub-pkg", "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": version},
	})
}

// networkPipIndex answers what pip asks of a package first.
func networkPipIndex(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/html")
	_, _ = fmt.Fprintf(w, "<a href=%q>%s</a>\n", "/"+networkWheelName, networkWheelName)
}

// tryTools begins a script that has tools fetch: try prints what came to the tool
// that is named, "refused 403", or "failed" with its last words.
const tryTools = `
cd "$(mktemp -d)"
try() {
  local tool=$1; shift
  if "$@" > $tool.out 2> $tool.err; then
    echo "$tool=$(tail -n1 $tool.out)"
  elif grep -q 403 $tool.err; then
    echo "$tool=refused 403"
  else
    echo "$tool=failed: $(tail -n5 $tool.err | tr '\n' ' ')"
  fi
}
`

// networkTools has the common tools fetch from a site.
const networkTools = tryTools + `
PLAIN=http://$1 TLS=https://$2 NAME=$3
clone() { git -c http.sslVerify=false clone -q "$1" "$2" && cat "$2/README"; }
npm_install() ( mkdir p && cd p && npm install --no-audit --no-fund --fetch-retries=0 --registry "$PLAIN/npm/" stub-pkg >&2 && node -p 'require("stub-pkg")' )
pip_install() { pip install -vv --user --no-cache-dir --retries 0 --index-url "$PLAIN/simple/" --trusted-host 127.0.0.2 --force-reinstall stubpkg >&2 && python3 -c 'import stubpkg; print(stubpkg.WORKS)'; }
try curl curl -sS -m 20 -f "$PLAIN/hello"
try tls curl -sS -m 20 -f --cacert /probe/ca.pem --connect-to "example.com:443:$2" https://example.com/hello
try name curl -sS -m 20 -f --noproxy '' "http://$NAME/hello"
try git clone "$PLAIN/repo.git" plain
try gittls clone "$TLS/repo.git" tls
try npm npm_install
try pip pip_install
try node node -e 'fetch(process.argv[1]).then(async r => { if (!r.ok) throw r.status; process.stdout.write(await r.text()) }).catch(e => { console.error(e); process.exit(1) })' "$PLAIN/hello"
try python python3 -c 'import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())' "$PLAIN/hello"
`

// networkTargets asks the proxy for each line of /probe/targets, by CONNECT and
// by a whole URL, and prints the answers' status lines.
const networkTargets = `
while read -r target; do
  for form in "CONNECT $target HTTP/1.1" "GET http://$target/hello HTTP/1.1"; do
    exec 3<>/dev/tcp/127.0.0.1/3128
    printf '%s\r\nHost: %s\r\nConnection: close\r\n\r\n' "$form" "$target" >&3
    IFS= read -r -t 20 answer <&3
    exec 3>&- 3<&-
    printf '%s=%s\n' "$form" "$answer"
  done
done < /probe/targets
`

// TestNetwork: tools reach what configuration allows, through the proxy and by
// names that are resolved outside; everything of the host and its networks is
// refused, however it is spelt.
func TestNetwork(t *testing.T) {
	dir := t.TempDir()
	networkRepository(t, dir)
	open, shut := newNetworkSite(t, dir), newNetworkSite(t, dir)
	// Listens at 127.0.0.1 too, for the many spellings of that address.
	loop, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = loop.Close() })
	reached := make(chan string, 100)
	go func() {
		for {
			c, err := loop.Accept()
			if err != nil {
				return
			}
			reached <- c.RemoteAddr().String()
			_ = c.Close()
		}
	}()
	named := httptest.NewServer(open.plain.Config.Handler)
	t.Cleanup(named.Close)
	_, namedPort, _ := net.SplitHostPort(named.Listener.Addr().String())
	_, loopPort, _ := net.SplitHostPort(loop.Addr().String())

	s := start(t, "STROMBOLI_EGRESS_ALLOW="+strings.Join([]string{open.host(), open.tlsHost(), "localhost:" + namedPort}, ","))
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: open.tls.Certificate().Raw}))

	t.Run("tools", func(t *testing.T) {
		files := map[string]string{"ca.pem": ca, "tools.sh": networkTools}
		_, out := s.probe(fmt.Sprintf("echo allowed; bash /probe/tools.sh %s %s localhost:%s\necho not allowed; bash /probe/tools.sh %s %s localhost:%s\n"+
			"echo redirect; curl -sS -m 20 -L -o /dev/null -w '%%{http_code}\\n' 'http://%s/to?url=http://%s/hello'\n"+
			"curl -sS -m 20 -o /dev/null -w '%%{http_code}\\n' -H 'Host: %s' http://%s/hello\n",
			open.host(), open.tlsHost(), namedPort, shut.host(), shut.tlsHost(), loopPort,
			open.host(), shut.host(), shut.host(), open.host()), files)
		allowed, rest, _ := strings.Cut(out, "not allowed\n")
		refused, rest, _ := strings.Cut(rest, "redirect\n")
		want := map[string]string{
			"curl": `hello to ` + open.host() + ` with ""`, "tls": `hello to example.com with ""`, "name": `hello to localhost:` + namedPort + ` with ""`,
			"git": "git works", "gittls": "git works", "npm": "npm works", "pip": "pip works",
			"node": `hello to ` + open.host() + ` with ""`, "python": `hello to ` + open.host() + ` with ""`,
		}
		for tool, w := range want {
			if got := probeLines(allowed)[tool]; got != w {
				t.Errorf("%s got %q, want %q", tool, got, w)
			}
			if got := probeLines(refused)[tool]; got != "refused 403" {
				t.Errorf("%s was not refused what isn't allowed: %q", tool, got)
			}
		}
		if rest != "403\n200\n" {
			t.Errorf("a redirect to what isn't allowed, and another name in Host: %q", rest)
		}
	})
	t.Run("targets", func(t *testing.T) {
		targets := networkRefused(t, loopPort, shut.port())
		_, out := s.probe(networkTargets, map[string]string{"targets": strings.Join(append(targets, open.host()), "\n") + "\n"})
		got := probeLines(out)
		if n := strings.Count(out, "\n"); n != 2*len(targets)+2 {
			t.Errorf("%d answers for %d targets", n, len(targets)+1)
		}
		for line := range strings.Lines(out) {
			form, answer, _ := strings.Cut(strings.TrimSpace(line), "=")
			allowed := strings.Contains(form, " "+open.host()+" ") || strings.Contains(form, "/"+open.host()+"/")
			switch {
			case allowed && !strings.HasPrefix(answer, "HTTP/1.1 200"):
				t.Errorf("the control %q was answered %q", form, answer)
			case !allowed && !strings.HasPrefix(answer, "HTTP/1.1 403") && !strings.HasPrefix(answer, "HTTP/1.1 400"):
				t.Errorf("%q was answered %q", form, answer)
			}
		}
		if len(got) == 0 {
			t.Errorf("the agent said %q", out)
		}
	})
	if n := shut.conns.Load(); n != 0 {
		t.Errorf("what isn't allowed was connected to %d times", n)
	}
	select {
	case from := <-reached:
		t.Errorf("the host's loopback was reached from %s", from)
	default:
	}
	t.Run("model", func(t *testing.T) { networkModel(t, s) })
}

// networkRefused are targets that no sandbox may reach.
func networkRefused(t *testing.T, loopPort, shutPort string) []string {
	t.Helper()
	var targets []string
	for _, host := range []string{
		"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "127.000.000.001",
		"localhost", "localhost.", "LOCALHOST", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
		"[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[::]", "0.0.0.0", "0", "[::ffff:0.0.0.0]", "127.255.255.254",
	} {
		targets = append(targets, host+":"+loopPort)
	}
	targets = append(targets, "127.0.0.2:"+shutPort, "[::ffff:127.0.0.2]:"+shutPort)
	for _, host := range []string{
		"10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254", "169.254.170.2", "[fd00:ec2::254]", "[fe80::1]",
		"[fe80::1%25lo]", "[fc00::1]", "[fec0::1]", "168.63.129.16", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "255.255.255.255", "240.0.0.1", "[ff02::1]", "[100::1]", "[2001:db8::1]", "[64:ff9b:1::1]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]",
		"[::ffff:169.254.169.254]", "[::ffff:10.0.0.1]", "2852039166", "0xa9fea9fe", "169.254.43518",
	} {
		targets = append(targets, host+":80")
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok {
			targets = append(targets, net.JoinHostPort(ip.IP.String(), loopPort))
		}
	}
	return slices.Compact(targets)
}

// networkModel: the model's endpoint gets the real credential whatever the
// sandbox sends, and only at the Messages API's paths.
func networkModel(t *testing.T, s *server) {
	const mark = "asked by hand"
	_, out := s.probe(`
body='{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"`+mark+`"}]}'
ask() { curl -sS -m 20 -o /tmp/answer -w '%{http_code}\n' --noproxy '*' -H 'Content-Type: application/json' "$@"; }
ask -d "$body" http://127.0.0.1:3128/v1/messages
ask -d "$body" -H 'x-api-key: mine' -H 'Authorization: Bearer mine' -H 'X_Api_Key: mine' -H 'Cookie: a=mine' http://127.0.0.1:3128/v1/messages
cat /tmp/answer > /workspace/answer
ask http://127.0.0.1:3128/v1/models
ask http://127.0.0.1:3128/v1/messages/../models --path-as-is
ask -d "$body" http://127.0.0.1:3128/v1/%6dessages
ask -d "$body" http://127.0.0.1:3128//v1/messages
ask http://127.0.0.1:3128/_stub/requests
ask -x http://127.0.0.1:3128 --noproxy '' -d "$body" '`+s.model.URL+`/v1/messages'
tr '\0' '\n' < /proc/$CLAUDE_PID/environ | sed -n 's/^ANTHROPIC_API_KEY=//p'
`, nil)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	want := []string{"200", "200", "404", "404", "404", "404", "404", "403", claude.Placeholder}
	if !slices.Equal(lines, want) {
		t.Errorf("answers %q, want %q", lines, want)
	}
	asked := 0
	for _, r := range s.stub.Requests("") {
		if r.Header.Get("X-Api-Key") != isolationKey || len(r.Header.Values("X-Api-Key")) != 1 || r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Errorf("the endpoint was given %v", r.Header)
		}
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, ","), "mine") || slices.Contains(values, claude.Placeholder) {
				t.Errorf("the sandbox's own %s came through: %v", name, values)
			}
		}
		if strings.Contains(r.Body, `"content":"`+mark+`"`) {
			asked++
		}
	}
	if asked != 2 {
		t.Errorf("the endpoint was asked by hand %d times, want 2", asked)
	}
}
