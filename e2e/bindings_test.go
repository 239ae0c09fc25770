package e2e_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// bindingSecret is what every bound host of the test wants.
const bindingSecret = "tok-" + canary + "-bound"

// bindingSite are hosts that want a secret, each in its own way: a git server, an
// npm registry, a Python index, an API; and one that wants none. A proxy leads to
// it by the hosts' names.
type bindingSite struct {
	tls, proxy *httptest.Server
	ca         string

	mu    sync.Mutex
	shown map[string][]string // headers that may hold a secret, by host
}

func newBindingSite(t *testing.T, repositories string) *bindingSite {
	t.Helper()
	b := &bindingSite{shown: map[string][]string{}}
	git := exec.CommandContext(t.Context(), "git", "--exec-path")
	path, err := git.Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"), Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + repositories, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + t.TempDir()}, Stderr: io.Discard,
	}
	b.tls = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.serve(t, backend, w, r) }))
	b.tls.TLS = &tls.Config{Certificates: []tls.Certificate{b.certificate(t)}}
	b.tls.StartTLS()
	b.proxy = httptest.NewServer(http.HandlerFunc(b.lead))
	t.Cleanup(b.tls.Close)
	t.Cleanup(b.proxy.Close)
	return b
}

// certificate is one for all hosts, signed by an authority of the test's.
func (b *bindingSite) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "world"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"git.example", "npm.example", "pip.example", "api.example", "plain.example"},
	}
	authority, err := x509.CreateCertificate(rand.Reader, root, root, &keys[0].PublicKey, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &keys[1].PublicKey, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	b.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority}))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: keys[1]}
}

// lead is a proxy that leads every name to the site.
func (b *bindingSite) lead(w http.ResponseWriter, _ *http.Request) {
	up, err := net.Dial("tcp", b.tls.Listener.Addr().String())
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	down, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		_ = up.Close()
		return
	}
	_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, down)
		_ = up.Close()
	}()
	_, _ = io.Copy(down, up)
	_ = down.Close()
}

func (b *bindingSite) serve(t *testing.T, git http.Handler, w http.ResponseWriter, r *http.Request) {
	basic := func(user string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+bindingSecret))
	}
	shown := r.Header.Get("Authorization") + r.Header.Get("X-Api-Key")
	want := map[string]string{"git.example": basic("x-access-token"), "npm.example": "Bearer " + bindingSecret, "pip.example": basic("reader"), "api.example": bindingSecret}[r.Host]
	b.mu.Lock()
	b.shown[r.Host] = append(b.shown[r.Host], shown)
	b.mu.Unlock()
	if want != shown && want != "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="site"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch r.Host + r.URL.Path {
	case "npm.example/stub-pkg":
		networkNpmIndex(t, w, "https://npm.example/stub-pkg.tgz")
	case "npm.example/stub-pkg.tgz":
		_, _ = w.Write(networkNpm(t))
	case "pip.example/simple/stubpkg/":
		networkPipIndex(w)
	case "pip.example/" + networkWheelName:
		_, _ = w.Write(networkWheel(t))
	case "api.example/", "plain.example/":
		_, _ = io.WriteString(w, r.Host+" works\n")
	default:
		body, err := io.ReadAll(r.Body) // CGI wants to know the length
		if err != nil {
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		git.ServeHTTP(w, r)
	}
}

// bindingTools has the tools fetch from hosts that want a secret, and looks for
// one around itself. The marker is put together here, so that this text doesn't
// hold it.
const bindingTools = `
cd "$(mktemp -d)"
export GIT_TERMINAL_PROMPT=0
try() {
  local tool=$1; shift
  if "$@" > $tool.out 2> $tool.err; then echo "$tool=$(tail -n1 $tool.out)"; else echo "$tool=failed: $(tail -n5 $tool.err | tr '\n' ' ')"; fi
}
clone() { rm -rf r; git clone -q https://git.example/repo.git r && cat r/README; }
push() ( cd r && head -c 6000000 /dev/urandom > big && git add big && git -c user.name=t -c user.email=t@t.invalid commit -qm big && git push -q && echo pushed )
npm_install() ( mkdir p && cd p && npm install --no-audit --no-fund --fetch-retries=0 --registry https://npm.example/ stub-pkg >&2 && node -p 'require("stub-pkg")' )
pip_install() { pip install --user --no-cache-dir --retries 0 --index-url https://pip.example/simple/ --force-reinstall stubpkg >&2 && python3 -c 'import stubpkg; print(stubpkg.WORKS)'; }
try git clone
[ "$1" = all ] || exit 0
try push push
try npm npm_install
try pip pip_install
try curl curl -sS -m 20 -f -H 'X-Api-Key: mine' https://api.example/
try node node -e 'fetch("https://api.example/").then(async r => { if (!r.ok) throw r.status; process.stdout.write(await r.text()) }).catch(e => { console.error(e); process.exit(1) })'
try python python3 -c 'import sys, urllib.request; sys.stdout.write(urllib.request.urlopen("https://api.example/", timeout=20).read().decode())'
try plain curl -sS -m 20 -f --cacert /probe/ca.pem https://plain.example/
a=c4nary b=S3cret
echo "environ=$(cat /proc/[0-9]*/environ 2>/dev/null | grep -ac "$a$b")"
echo "files=$(grep -rlI "$a$b" "$HOME" /tmp /workspace /opt/stromboli/trust /etc 2>/dev/null | wc -l)"
touch /workspace/waits; until [ -e /workspace/go ]; do sleep 0.05; done
try again clone
`

// TestBindings: git, npm, pip and other tools get from hosts what these give for
// a secret alone, and the sandbox never has it; also after egress and server have
// been killed. Without the binding the host refuses.
func TestBindings(t *testing.T) {
	dir := t.TempDir()
	networkRepository(t, dir)
	if out, err := exec.CommandContext(t.Context(), "git", "-C", filepath.Join(dir, "repo.git"), "config", "http.receivepack", "true").CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	site := newBindingSite(t, dir)
	roots := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(roots, []byte(site.ca), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "SSL_CERT_FILE="+roots, "HTTPS_PROXY="+site.proxy.URL, "STROMBOLI_EGRESS_PROXY_HOSTS=*.example")
	if err := s.c.CreateSecret(s.ctx(), "bound", bindingSecret+"\n"); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"ca.pem": site.ca, "tools.sh": bindingTools}
	in := s.probeSpec("bash /probe/tools.sh all", files, func(in *stromboli.RunSpec) {
		in.Bindings = []stromboli.Binding{
			{Host: "git.example", Secret: "bound", Scheme: "basic"},
			{Host: "npm.example", Secret: "bound", Scheme: "bearer"},
			{Host: "pip.example:443", Secret: "bound", Scheme: "basic", Username: "reader"},
			{Host: "api.example", Secret: "bound", Scheme: "header", Header: "X-Api-Key"},
		}
	})
	id := s.submit(t, in)
	job, err := s.c.Job(s.ctx(), id)
	if err != nil {
		t.Fatal(err)
	}
	workspace := filepath.Join(s.data, "sessions", job.SessionID, "workspace")
	waitFor(t, "the tools to have worked", func() bool {
		_, err := os.Stat(filepath.Join(workspace, "waits"))
		return err == nil
	})
	old := s.egressPID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.kill()
	s.up()
	if err := os.WriteFile(filepath.Join(workspace, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if done := s.await(t, id); done.Status != stromboli.Completed {
		t.Fatalf("%s %s", done.Status, done.Error)
	}
	got := probeLines(s.probed(job.SessionID))
	for tool, want := range map[string]string{
		"git": "git works", "push": "pushed", "npm": "npm works", "pip": "pip works", "curl": "api.example works", "node": "api.example works", "python": "api.example works",
		"plain": "plain.example works", "environ": "0", "files": "0", "again": "git works",
	} {
		if got[tool] != want {
			t.Errorf("%s: %q, want %q", tool, got[tool], want)
		}
	}
	site.mu.Lock()
	if plain := site.shown["plain.example"]; len(plain) != 1 || plain[0] != "" {
		t.Errorf("a host that isn't bound was shown %d things", len(plain))
	}
	site.mu.Unlock()
	bindingRecords(t, s, id)

	control := s.probeSpec("bash /probe/tools.sh", files, func(in *stromboli.RunSpec) { in.Env = map[string]string{"GIT_SSL_CAINFO": "/probe/ca.pem"} })
	id = s.submit(t, control)
	done := s.await(t, id)
	job, err = s.c.Job(s.ctx(), id)
	if err != nil || done.Status != stromboli.Completed {
		t.Fatalf("%s %s, %v", done.Status, done.Error, err)
	}
	if got := probeLines(s.probed(job.SessionID))["git"]; !strings.Contains(got, "could not read Username") {
		t.Errorf("without the binding: %q", got)
	}
}

// bindingRecords: what was opened stands in the records and the attestation, by
// the hosts' names alone.
func bindingRecords(t *testing.T, s *server, id string) {
	t.Helper()
	var attested struct {
		Bindings []string `json:"bindings"`
	}
	a := s.send(t, "GET", "/jobs/"+id+"/attestation", "")
	if err := json.Unmarshal(a.body, &attested); err != nil || !slices.Equal(attested.Bindings, []string{"git.example:443", "npm.example:443", "pip.example:443", "api.example:443"}) {
		t.Errorf("the attestation: %v, %v", attested.Bindings, err)
	}
	var list struct {
		Records []stromboli.EgressRecord `json:"records"`
	}
	a = s.send(t, "GET", "/jobs/"+id+"/egress", "")
	if err := json.Unmarshal(a.body, &list); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	sent := int64(0)
	for _, r := range list.Records {
		kinds[r.Host] = r.Kind
		if r.Host == "git.example" {
			sent += r.Sent
		}
	}
	for host, kind := range map[string]string{"git.example": "binding", "npm.example": "binding", "pip.example": "binding", "api.example": "binding", "plain.example": "connect"} {
		if kinds[host] != kind {
			t.Errorf("%s is recorded as %q, not %q", host, kinds[host], kind)
		}
	}
	if sent < 6e6 {
		t.Errorf("%d bytes are recorded of a push of 6 MB", sent)
	}
}
