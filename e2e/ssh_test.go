package e2e_test

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
)

// TestSSHRemote: git's ssh reaches a server on the host that configuration
// allows, through the proxy and without settings of its own, and no other.
func TestSSHRemote(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	banner := make(chan string, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-scripted\r\n") // a server speaks first
			line, _ := bufio.NewReader(c).ReadString('\n')
			select {
			case banner <- line:
			default:
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	s := start(t, "STROMBOLI_EGRESS_ALLOW="+l.Addr().String())
	done, said := s.probe("git ls-remote ssh://git@"+l.Addr().String()+"/x.git; git ls-remote ssh://git@127.0.0.3:22/x.git", nil)
	select {
	case line := <-banner:
		if !strings.HasPrefix(line, "SSH-2.0-OpenSSH") {
			t.Errorf("the server was told %q", line)
		}
	default:
		t.Errorf("the server was not reached: %s %s", done.Status, said)
	}
	if !strings.Contains(said, "refused by the egress policy: address refused: 127.0.0.3") {
		t.Errorf("the other one: %s", said)
	}
}
