package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
)

// The prompt of GET /run/stream is in its URL, hence the large limit; every
// other request has to do with the small one.
const (
	maxStreamURL   = 4 << 20
	maxOtherHeader = 64 << 10
)

// Serve answers requests on ln until ctx ends. Then streams end with a hint to
// reconnect, and other requests get Config.Drain to finish: a caller that
// still waits for its run shortly before is told so and keeps the run's id.
// Runs are not touched. Serve closes ln and may be called once.
func (a *API) Serve(ctx context.Context, ln net.Listener) error {
	hard, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	// Without TLS there is no HTTP/2 but for those who know.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(a.cfg.TLS != nil)
	gate := newGate(a.cfg.MaxConnections, a.cfg.MaxPerAddress)
	srv := &http.Server{
		Handler:                      a.Handler(),
		Protocols:                    &protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnState:                    gate.watch,
		ConnContext:                  known,
		ReadHeaderTimeout:            a.cfg.HeaderTimeout,
		IdleTimeout:                  a.cfg.IdleTimeout,
		MaxHeaderBytes:               maxStreamURL + maxOtherHeader,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return hard },
	}
	defer a.presence.close()
	var in net.Listener = listener{ln, gate}
	if a.cfg.TLS != nil {
		in = newTLSListener(hard, in, a.cfg.TLS, a.cfg.HeaderTimeout)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(in) }()
	select {
	case err := <-served:
		a.Drain()
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	a.Drain()
	drain, cancel := context.WithTimeout(hard, a.cfg.Drain)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		a.log.WarnContext(hard, "closing connections that did not finish in time", "after", a.cfg.Drain)
		if err := srv.Close(); err != nil {
			a.log.WarnContext(hard, "close connections", "err", err)
		}
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// jsonConn turns the answers that net/http gives by itself (431, and 400 for
// what is not HTTP) into the contract's JSON: it writes them to the connection,
// out of any handler's reach.
type jsonConn struct{ net.Conn }

// ownAnswer is what net/http puts between status line and text, and what no
// handler here can produce.
const ownAnswer = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

func (c jsonConn) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 ")) || len(b) > 1024 {
		return c.Conn.Write(b)
	}
	line, _, ok := bytes.Cut(b, []byte(ownAnswer))
	if !ok {
		return c.Conn.Write(b)
	}
	// Nothing of the client's own text is in the message: the code alone.
	body := `{"error":"the request is not valid HTTP","code":"invalid_request"}`
	status := "400 Bad Request"
	if bytes.HasPrefix(line, []byte("HTTP/1.1 431")) {
		body = `{"error":"the request's header is too large","code":"header_too_large"}`
		status = "431 Request Header Fields Too Large"
	} else if bytes.HasPrefix(line, []byte("HTTP/1.1 5")) {
		status = "501 Not Implemented"
	}
	_, err := fmt.Fprintf(c.Conn, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nCache-Control: no-store\r\n"+
		"X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%s",
		status, len(body), body)
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// CloseWrite keeps the half-close that lets a refused client read the answer.
func (c jsonConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.Close()
}
