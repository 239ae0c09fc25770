package egress

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/unixsock"
)

// serveDirEnv makes the test binary an egress process.
const serveDirEnv = "EGRESS_TEST_SERVE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveDirEnv); dir != "" {
		os.Exit(serveProcess(dir))
	}
	goleak.VerifyTestMain(m)
}

func serveProcess(dir string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	idle, _ := time.ParseDuration(os.Getenv("EGRESS_TEST_IDLE"))
	err := Serve(ctx, ServeConfig{
		Dir: dir, Build: os.Getenv("EGRESS_TEST_BUILD"), IdleTimeout: idle,
		Demo: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "demo") }),
		Log:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

const testToken = "0123456789abcdef0123456789abcdef"

// shortDir is a directory whose sockets' paths are short enough for anybody.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "eg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// fixture is a gateway with one sandbox.
type fixture struct {
	*testing.T
	g      *gateway
	socket string
	client *http.Client // origin form, as for the model
	proxy  *http.Client // CONNECT and absolute form
	read   []stromboli.EgressRecord
}

func newFixture(t *testing.T, cfg Config, change ...func(*gateway)) *fixture {
	t.Helper()
	g := newGateway(ServeConfig{Dir: shortDir(t), Log: slog.New(slog.DiscardHandler)})
	for _, f := range change {
		f(g)
	}
	if err := g.configure(cfg); err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, g: g, socket: filepath.Join(shortDir(t), "s")}
	if err := g.add(f.registration("a")); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, f.socket) }
	origin := &http.Transport{DialContext: dial}
	forward := &http.Transport{
		DialContext: dial,
		Proxy:       func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: "egress"}, nil },
	}
	f.client, f.proxy = &http.Client{Transport: origin}, &http.Client{Transport: forward}
	t.Cleanup(func() {
		origin.CloseIdleConnections()
		forward.CloseIdleConnections()
		for _, d := range g.list() {
			d.close()
		}
		g.model.CloseIdleConnections()
	})
	return f
}

func (f *fixture) registration(id string) Sandbox {
	return Sandbox{ID: id, Socket: f.socket, Token: testToken, PeerUID: ownUID(), HasPeerUID: true, Network: openNetwork()}
}

func openNetwork() stromboli.Network { return stromboli.Network{Mode: stromboli.NetworkOpen} }

func ownUID() uint32 { return uint32(os.Getuid()) }

// dialSandbox does what the forwarder in a sandbox does.
func dialSandbox(ctx context.Context, socket string) (net.Conn, error) {
	c, err := unixsock.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c, "STROMBOLI/1 %s\n", testToken); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (f *fixture) dial() *net.UnixConn {
	f.Helper()
	c, err := dialSandbox(f.Context(), f.socket)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	uc := c.(*net.UnixConn)
	_ = uc.SetDeadline(time.Now().Add(2 * time.Minute))
	return uc
}

// raw sends text on a new connection and returns the answer's status line.
func (f *fixture) raw(text string) string {
	f.Helper()
	c := f.dial()
	if _, err := c.Write([]byte(text)); err != nil {
		f.Fatal(err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(line)
}

// resolving makes names resolve to fixed addresses.
func resolving(names map[string][]string) func(*gateway) {
	return func(g *gateway) {
		g.dialer.resolve = func(_ context.Context, name string) ([]netip.Addr, error) {
			var addrs []netip.Addr
			for _, s := range names[name] {
				addrs = append(addrs, netip.MustParseAddr(s))
			}
			if addrs == nil {
				return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
			}
			return addrs, nil
		}
	}
}

// eventually polls until ok. The deadline is for what hangs, not for what is
// slow: the machine may have much else to do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		if ok() {
			return
		}
		sleep(t.Context(), 2*time.Millisecond)
	}
	t.Fatalf("%s: not within two minutes", what)
}

// refuseEveryDial fails the test if anything is dialled at all.
func refuseEveryDial(t *testing.T) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, addr string, _ syscall.RawConn) error {
		t.Errorf("%s was dialled", addr)
		return syscall.EACCES
	}
}
