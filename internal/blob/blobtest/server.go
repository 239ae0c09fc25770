// Package blobtest starts a real server of the S3 protocol for tests: versitygw on
// a directory, on loopback, as a process of its own.
package blobtest

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	serverPackage = "github.com/versity/versitygw/cmd/versitygw"
	serverVersion = "v1.8.0"
	// Bucket is the bucket that there is.
	Bucket = "logs"
)

// Server is a running server.
type Server struct {
	// URL names the bucket, with a prefix.
	URL string
	// Env are the variables with its credentials.
	Env []string
	// Dir is the directory with what is in the bucket.
	Dir string

	t    testing.TB
	tool string
	root string
	port string
	cmd  *exec.Cmd
}

// Getenv is the environment that Env is.
func (s *Server) Getenv(name string) string {
	for _, kv := range s.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// Start starts a server, which ends with the test. Where the program can't be built
// the test is skipped, or fails in CI.
func Start(t testing.TB) *Server {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "..", "..", "..", "scripts", "tool.sh")
	out, err := exec.CommandContext(t.Context(), "sh", script, "versitygw", serverPackage, serverVersion).Output()
	if err != nil {
		if os.Getenv("STROMBOLI_TEST_REQUIRE") != "" {
			t.Fatalf("the server of the S3 protocol can't be built: %v", err)
		}
		t.Skipf("the server of the S3 protocol can't be built: %v", err)
	}
	s := &Server{
		t: t, tool: strings.TrimSpace(string(out)), root: t.TempDir(),
		Env: []string{"AWS_ACCESS_KEY_ID=test-key", "AWS_SECRET_ACCESS_KEY=test-secret-0123456789"},
	}
	s.Dir = filepath.Join(s.root, "data", Bucket)
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.root, "meta"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.port = freePort(t)
	s.URL = "s3://" + Bucket + "/some/prefix?region=eu-central-1&endpoint=http://127.0.0.1:" + s.port
	s.Resume()
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server; what is in the bucket stays.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Resume starts it again, at the same address.
func (s *Server) Resume() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), s.tool, "--port", "127.0.0.1:"+s.port, "--region", "eu-central-1", "--quiet",
		"posix", "--sidecar", filepath.Join(s.root, "meta"), filepath.Join(s.root, "data"))
	s.cmd.Env = []string{"ROOT_ACCESS_KEY=" + s.Getenv("AWS_ACCESS_KEY_ID"), "ROOT_SECRET_KEY=" + s.Getenv("AWS_SECRET_ACCESS_KEY"), "PATH=" + os.Getenv("PATH")}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:"+s.port)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-ctx.Done():
			s.t.Fatal(errors.Join(ctx.Err(), err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err = errors.Join(err, ln.Close()); err != nil {
		t.Fatal(err)
	}
	return port
}
