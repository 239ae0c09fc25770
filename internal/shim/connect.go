package shim

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// ConnectName is the name under which this binary is mounted once more, where
// the agent can run it: a ProxyCommand for ssh.
const ConnectName = "connect"

const connectTime = 60 * time.Second

// connectMain relays between standard input and output and a host, through the
// proxy that https_proxy names: "connect host port". It is run by the agent and
// has nothing of the shim's but the file.
func connectMain(args []string, in io.Reader, out, errOut io.Writer) int {
	if len(args) != 2 {
		_, _ = fmt.Fprintln(errOut, "usage: connect host port")
		return 2
	}
	if err := relayTo(net.JoinHostPort(args[0], args[1]), in, out); err != nil {
		_, _ = fmt.Fprintf(errOut, "connect %s: %v\n", strings.Join(args, " "), err)
		return 1
	}
	return 0
}

func relayTo(target string, in io.Reader, out io.Writer) error {
	proxy := strings.TrimSuffix(strings.TrimPrefix(os.Getenv("https_proxy"), "http://"), "/")
	if proxy == "" {
		return fmt.Errorf("https_proxy names no proxy")
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", proxy)
	if err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	defer func() { _ = raw.Close() }()
	conn, ok := raw.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("the proxy: not a TCP connection")
	}
	_ = conn.SetDeadline(time.Now().Add(connectTime))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return fmt.Errorf("the proxy: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		_ = resp.Body.Close()
		return fmt.Errorf("%s", strings.TrimSpace(string(why)))
	}
	_ = conn.SetDeadline(time.Time{})
	go func() { // ends with the process, or with its input
		_, _ = io.Copy(conn, in)
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(out, answer); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}
