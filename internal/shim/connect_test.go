package shim

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestConnect: what ssh's ProxyCommand does, against a proxy that permits one
// host and echoes for it.
func TestConnect(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil || req.Method != http.MethodConnect || req.Host != "git.example:22" {
					_, _ = io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\nit is refused\n")
					return
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0-first\r\n")
				_, _ = io.Copy(c, r)
			}()
		}
	}()
	t.Setenv("https_proxy", "http://"+l.Addr().String())
	var out, errOut bytes.Buffer
	if code := connectMain([]string{"git.example", "22"}, strings.NewReader("hello"), &out, &errOut); code != 0 || out.String() != "SSH-2.0-first\r\nhello" {
		t.Errorf("%d, %q, %q", code, &out, &errOut)
	}
	out.Reset()
	if code := connectMain([]string{"other.example", "22"}, strings.NewReader(""), &out, &errOut); code != 1 || out.Len() != 0 || !strings.Contains(errOut.String(), "it is refused") {
		t.Errorf("%d, %q, %q", code, &out, &errOut)
	}
	if code := connectMain([]string{"git.example"}, nil, &out, &errOut); code != 2 {
		t.Errorf("without a port: %d", code)
	}
	t.Setenv("https_proxy", "")
	if code := connectMain([]string{"git.example", "22"}, nil, &out, &errOut); code != 1 {
		t.Errorf("without a proxy: %d", code)
	}
}
