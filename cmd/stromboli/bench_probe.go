package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// benchProbeCommand measures a source over the network: from a sandbox through
// its proxy, and from the host directly.
type benchProbeCommand struct {
	URL      string `required:"" help:"The source's base URL."`
	Proxy    string `help:"The proxy's host:port; none: directly."`
	Requests int    `default:"400" help:"Requests, one after the other."`
	Out      string `required:"" help:"File for what was measured."`
}

// probeResult is what one probe measured.
type probeResult struct {
	RequestsMS []float64 `json:"requests_ms"`
	PacedMBs   float64   `json:"paced_mbs"`   // of a source that sends 125 MB/s
	UnpacedMBs float64   `json:"unpaced_mbs"` // of one that sends what it can
}

// Run measures and writes the result.
func (c benchProbeCommand) Run(ctx context.Context) error {
	r, err := c.measure(ctx)
	if err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(c.Out, b, 0o644) //nolint:gosec // for the host
}

func (c benchProbeCommand) measure(ctx context.Context) (r probeResult, err error) {
	// Requests as `curl http://…` makes them, streams as any https:// would:
	// through a tunnel.
	plain, tunnel := &http.Transport{}, &http.Transport{DialContext: c.dial}
	if c.Proxy != "" {
		plain.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: c.Proxy})
	}
	defer plain.CloseIdleConnections()
	defer tunnel.CloseIdleConnections()
	for i := range c.Requests + 20 {
		took, _, err := fetch(ctx, plain, c.URL+"/small")
		if err != nil {
			return r, err
		}
		if i >= 20 { // the first ones open connections
			r.RequestsMS = append(r.RequestsMS, milliseconds(took))
		}
	}
	if r.PacedMBs, err = rate(ctx, tunnel, c.URL+"/paced"); err != nil {
		return r, err
	}
	r.UnpacedMBs, err = rate(ctx, tunnel, c.URL+"/unpaced")
	return r, err
}

// rate is how fast a stream comes, in MB/s.
func rate(ctx context.Context, t http.RoundTripper, url string) (float64, error) {
	took, n, err := fetch(ctx, t, url)
	return float64(n) / 1e6 / took.Seconds(), err
}

func fetch(ctx context.Context, t http.RoundTripper, url string) (time.Duration, int64, error) {
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, 0, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, 256<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return time.Since(start), n, err
}

// dial connects to a target, through the proxy if there is one.
func (c benchProbeCommand) dial(ctx context.Context, network, target string) (net.Conn, error) {
	if c.Proxy == "" {
		return new(net.Dialer).DialContext(ctx, network, target)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, c.Proxy)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return nil, closing(conn, err)
	}
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, nil) //nolint:bodyclose // a tunnel: what follows is the connection
	if err != nil {
		return nil, closing(conn, err)
	}
	if resp.StatusCode != http.StatusOK || answer.Buffered() > 0 { // the source doesn't speak first
		return nil, closing(conn, fmt.Errorf("CONNECT %s: %s", target, resp.Status))
	}
	return conn, nil
}

func closing(c io.Closer, err error) error {
	_ = c.Close()
	return err
}

// probeSource is what probes measure.
func probeSource() http.Handler {
	const paceMBs, seconds, unpacedMB = 125, 2, 1000
	chunk := make([]byte, 64<<10)
	send := func(w io.Writer, bytes int64, due func(sent int64) time.Duration) {
		start := time.Now()
		for sent := int64(0); sent < bytes; sent += int64(len(chunk)) {
			if due != nil {
				time.Sleep(due(sent) - time.Since(start)) //nolint:forbidigo // this is what a pace is
			}
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /small", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(chunk[:200]) })
	mux.HandleFunc("GET /paced", func(w http.ResponseWriter, _ *http.Request) {
		send(w, paceMBs*seconds*1e6, func(sent int64) time.Duration {
			return time.Duration(float64(sent) / (paceMBs * 1e6) * float64(time.Second))
		})
	})
	mux.HandleFunc("GET /unpaced", func(w http.ResponseWriter, _ *http.Request) { send(w, unpacedMB*1e6, nil) })
	return mux
}
