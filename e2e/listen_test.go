package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// launch starts a program as this server and waits until it says that it serves.
func (s *server) launch(cmd *exec.Cmd) {
	s.t.Helper()
	before := strings.Count(s.log.tail(1<<30), "serving at")
	cmd.Env, cmd.Dir, cmd.Stderr, cmd.WaitDelay = append(s.env, cmd.Env...), s.dir, s.log, 5*time.Second
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	s.cmd, s.done = cmd, done
	waitFor(s.t, "the server", func() bool {
		select {
		case <-done:
			s.t.Fatalf("the server ended: %s", s.log.tail(3000))
		default:
		}
		return strings.Count(s.log.tail(1<<30), "serving at") > before
	})
}

// oneRun has the command line carry out a run, with settings of its own.
func (s *server) oneRun(env ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.ctx(), suite.bin, "run", spec(text("the answer")).Prompt)
	cmd.Env, cmd.Dir = append([]string{"HOME=" + s.dir}, env...), s.dir
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "the answer") {
		s.t.Errorf("%q: %v: %s", env, err, out)
	}
}

// certify writes a certificate for 127.0.0.1 and a name, and its key.
func certify(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestServeTLS: the server speaks HTTPS, the command line reaches it by its data
// directory and by a file of certificates, and a new certificate is shown soon
// after its files have changed.
func TestServeTLS(t *testing.T) {
	s := prepare(t)
	certFile, keyFile := filepath.Join(s.dir, "cert.pem"), filepath.Join(s.dir, "key.pem")
	certify(t, certFile, keyFile, "one.example")
	s.env = append(s.env, "STROMBOLI_TLS_CERT="+certFile, "STROMBOLI_TLS_KEY="+keyFile)
	s.launch(exec.Command(suite.bin))
	b, err := os.ReadFile(filepath.Join(s.data, "address"))
	url := strings.TrimSpace(string(b))
	if err != nil || !strings.HasPrefix(url, "https://127.0.0.1:") {
		t.Fatalf("it is at %q, %v", url, err)
	}
	s.oneRun("STROMBOLI_DATA_DIR="+s.data, "STROMBOLI_TLS_CERT="+certFile, "STROMBOLI_TLS_KEY="+keyFile)
	s.oneRun("STROMBOLI_URL="+url, "STROMBOLI_CA_FILE="+certFile)
	untrusting := exec.CommandContext(s.ctx(), suite.bin, "run", "x")
	untrusting.Env = []string{"HOME=" + s.dir, "STROMBOLI_URL=" + url}
	if out, err := untrusting.CombinedOutput(); err == nil || !strings.Contains(string(out), "certificate") {
		t.Errorf("an unknown certificate was believed: %v: %s", err, out)
	}

	shown := func() string {
		c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(s.ctx(), "tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		return c.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if name := shown(); name != "one.example" {
		t.Errorf("it shows %s", name)
	}
	certify(t, certFile, keyFile, "two.example")
	waitFor(t, "the new certificate", func() bool { return shown() == "two.example" })
}

// TestServeUnix: the server listens on a unix socket with its mode, without
// authentication; nobody takes it while it lives, and what a dead one left is
// replaced.
func TestServeUnix(t *testing.T) {
	s := prepare(t)
	path := filepath.Join(s.dir, "s.sock")
	s.env = append(s.env, "STROMBOLI_SERVER_ADDRESS=unix://"+path, "STROMBOLI_SERVER_SOCKET_MODE=0660")
	s.launch(exec.Command(suite.bin))
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v", info, err)
	}
	s.oneRun("STROMBOLI_DATA_DIR=" + s.data) // it says where

	other := exec.CommandContext(s.ctx(), suite.bin)
	other.Dir, other.Env = s.dir, append(s.env, "STROMBOLI_DATA_DIR="+filepath.Join(s.dir, "o"))
	if out, err := other.CombinedOutput(); err == nil || !strings.Contains(string(out), "another process listens there") {
		t.Errorf("the socket of a living server was taken: %v: %s", err, out)
	}
	s.kill()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the test shows nothing: %v", err)
	}
	s.launch(exec.Command(suite.bin))
	resp, err := (&http.Client{Transport: unixTransport(path), Timeout: time.Minute}).Get("http://localhost/livez")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the next server: %v", err)
	}
	_ = resp.Body.Close()
	s.stop()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestSocketActivation: the server takes the listening socket that it is handed
// in the way of systemd, answers what came in before it was there, and leaves
// the socket to who has it.
func TestSocketActivation(t *testing.T) {
	s := prepare(t)
	path := filepath.Join(s.dir, "handed.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	early, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = early.Close() }()
	if _, err := early.Write([]byte("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve`, suite.bin)
	cmd.ExtraFiles = []*os.File{file}
	s.launch(cmd)
	buf := make([]byte, 15)
	_ = early.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := early.Read(buf); err != nil || !strings.HasPrefix(string(buf), "HTTP/1.1 200") {
		t.Errorf("who came early got %q, %v", buf, err)
	}
	s.oneRun("STROMBOLI_URL=unix://" + path)
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	waitFor(t, "the reload", func() bool { return strings.Contains(s.log.tail(1<<30), "configuration was reloaded") })
	s.stop()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket was somebody else's: %v", err)
	}

	two := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 exec "$0" serve`, suite.bin)
	two.ExtraFiles, two.Env, two.Dir = []*os.File{file, file}, s.env, s.dir
	if out, err := two.CombinedOutput(); err == nil || !strings.Contains(string(out), "LISTEN_FDS: 2 sockets") {
		t.Errorf("of two sockets: %v: %s", err, out)
	}
}
