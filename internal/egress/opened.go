package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/policy"
)

const (
	// maxOpened bounds the connections of a sandbox that are open at a time: each
	// has buffers of two TLS connections. More of them wait.
	maxOpened = 64
	// openedKeepAlive is how long an opened connection waits for its next request.
	openedKeepAlive = time.Minute
	// freshFor is how long the connection that was made for a tunnel is good for
	// its first request: a far end may close one that is silent.
	freshFor = 5 * time.Second
)

// opened is one tunnel to a bound host, its TLS ended here on both sides. HTTP/1.1
// is read and written anew, so that no message can hide in another, and the
// secret is put on each request. What is dialled for it is nobody else's.
type opened struct {
	h    *handler
	f    *flow
	out  *http.Transport
	pass *httputil.ReverseProxy

	answered bool // a request; they come one after the other

	mu      sync.Mutex
	first   net.Conn // made before the sandbox was answered
	firstAt time.Time
}

// secureConn is a TLS connection to a bound host that was verified, and what
// was dialled for it.
type secureConn struct {
	*tls.Conn
	peer netip.Addr
}

// openTo waits for a place among the opened connections, and connects to the
// bound host: no sandbox is answered before the host has proven who it is.
func (h *handler) openTo(f *flow) (*opened, error) {
	select {
	case h.opened <- struct{}{}:
	case <-f.ctx.Done():
		return nil, context.Cause(f.ctx) //nolint:wrapcheck // says all
	}
	o := &opened{h: h, f: f}
	o.out = &http.Transport{
		// Nothing else is dialled: every request's URL is https.
		DialTLSContext:         o.dial,
		MaxConnsPerHost:        1,
		IdleConnTimeout:        openedKeepAlive,
		MaxResponseHeaderBytes: 1 << 20,
		DisableCompression:     true,
		ExpectContinueTimeout:  time.Second,
	}
	o.pass = &httputil.ReverseProxy{
		Rewrite:        o.rewrite,
		Transport:      o.out,
		FlushInterval:  -1,
		BufferPool:     h.g.buffers,
		ErrorLog:       slog.NewLogLogger(h.door.log.Handler(), slog.LevelDebug),
		ErrorHandler:   o.failed,
		ModifyResponse: func(*http.Response) error { o.answered = true; return nil },
	}
	conn, err := o.connect(f.ctx)
	if err != nil {
		o.close()
		return nil, err
	}
	o.first, o.firstAt = conn, time.Now()
	return o, nil
}

func (o *opened) close() {
	o.out.CloseIdleConnections()
	o.mu.Lock()
	if o.first != nil {
		_ = o.first.Close()
		o.first = nil
	}
	o.mu.Unlock()
	<-o.h.opened
}

// dial gives the transport its connection: the one that is there already, or
// another under the rules that hold by now.
func (o *opened) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	o.mu.Lock()
	first := o.first
	o.first = nil
	o.mu.Unlock()
	if first != nil {
		if time.Since(o.firstAt) < freshFor {
			return first, nil
		}
		_ = first.Close()
	}
	return o.connect(ctx)
}

// connect makes a verified TLS connection to the bound host.
func (o *opened) connect(ctx context.Context) (net.Conn, error) {
	conn, err := o.h.dial(ctx, o.f.to)
	if err != nil {
		return nil, err
	}
	peer := peerOf(conn)
	if err := o.f.reached(peer); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	config := o.h.g.model.TLSClientConfig.Clone()
	config.ServerName, config.NextProtos = o.f.to.name, []string{"http/1.1"}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secureConn{secure, peer}, nil
}

// serve answers requests of the sandbox's connection until that ends. early is
// what the client sent along with its CONNECT.
func (o *opened) serve(down *conn, early io.Reader) {
	counted := &countedConn{conn: down, early: early, closed: make(chan struct{})}
	o.h.door.mu.Lock()
	identity := o.h.door.rules.bound.identity
	o.h.door.mu.Unlock()
	secure := tls.Server(counted, o.config(identity))
	defer func() { o.f.rec.Sent, o.f.rec.Received = counted.read.Load(), counted.written.Load() }()
	greet, cancel := context.WithTimeout(o.f.ctx, o.h.g.headers)
	defer cancel()
	if err := secure.HandshakeContext(greet); err != nil {
		o.f.failed(fmt.Errorf("no TLS with the sandbox: %w", err))
		return
	}
	l := &oneConn{addr: down.LocalAddr(), closed: counted.closed, next: make(chan net.Conn, 1)}
	l.next <- secure
	server := &http.Server{
		Handler:           o,
		ReadHeaderTimeout: o.h.g.headers,
		IdleTimeout:       openedKeepAlive,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.h.door.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return o.f.ctx },
		Protocols:         new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	var watch sync.WaitGroup
	watch.Go(func() { counted.endIdle(o.h.g.idle) })
	watch.Go(func() {
		select {
		case <-o.h.door.leaves: // what a secret becomes is told to the successor
			server.SetKeepAlivesEnabled(false)
		case <-counted.closed:
		}
	})
	_ = server.Serve(l) // returns when the connection is closed
	watch.Wait()
}

// config is this side of the TLS with the sandbox, which wants the bound host
// and no other.
func (o *opened) config(identity tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if name, _, err := policy.ParseHost(hello.ServerName); hello.ServerName != "" && (err != nil || name != o.f.to.name) {
				return nil, errors.New("another host is wanted than the one that was asked for")
			}
			return &identity, nil
		},
	}
}

// ServeHTTP passes one request on.
func (o *opened) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace: // the one hides what follows, the other tells what was sent
		proxyFailure(w, http.StatusMethodNotAllowed, r.Method+" is not passed on to a bound host")
		return
	case !o.f.to.sameHost(r.Host):
		w.Header().Set("Connection", "close")
		proxyFailure(w, http.StatusMisdirectedRequest, "this connection is for "+o.f.to.authority()+" alone")
		return
	}
	binding, err := o.h.door.binding(o.f.to)
	if err != nil {
		w.Header().Set("Connection", "close")
		o.note(err)
		dialFailure(w, err)
		return
	}
	ctx := httptrace.WithClientTrace(context.WithValue(r.Context(), bindingKey{}, binding), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if secure, ok := info.Conn.(secureConn); !ok || o.f.reached(secure.peer) != nil {
				o.f.cut(errCut)
			}
		},
	})
	// Else an answer would wait for the end of the request.
	_ = http.NewResponseController(w).EnableFullDuplex()
	o.pass.ServeHTTP(cookieless{w}, r.WithContext(ctx))
}

// bindingKey carries the binding that holds for a request from its beginning.
type bindingKey struct{}

// rewrite aims a request at the bound host and shows it the secret, in place of
// whatever the sandbox sent. What the request asks for stays as it was spelt.
func (o *opened) rewrite(pr *httputil.ProxyRequest) {
	binding, _ := pr.In.Context().Value(bindingKey{}).(Binding)
	pr.Out.Host = o.f.to.authority()
	pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.URL.User = "https", o.f.to.String(), nil
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	for name := range pr.Out.Header {
		switch lower := strings.ReplaceAll(strings.ToLower(name), "_", "-"); lower {
		case "authorization", "proxy-authorization", "cookie", strings.ToLower(binding.Header):
			delete(pr.Out.Header, name)
		}
	}
	pr.Out.Trailer = nil // some read a trailer as a header
	// No other protocol on this connection: what follows an upgrade is not seen.
	pr.Out.Header.Del("Upgrade")
	pr.Out.Header.Del("Connection")
	pr.Out.Header[http.CanonicalHeaderKey(binding.Header)] = []string{binding.Value}
	if _, ok := pr.Out.Header["User-Agent"]; !ok {
		pr.Out.Header.Set("User-Agent", "") // else net/http names itself
	}
}

// cookieless keeps sessions that a host opens for the credential outside, those
// of interim answers too.
type cookieless struct{ http.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w cookieless) WriteHeader(status int) {
	w.Header().Del("Set-Cookie")
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w cookieless) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (o *opened) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the sandbox has gone
	}
	o.note(err)
	dialFailure(w, err)
}

// note records what became of a request that was not answered. A connection on
// which the secret was shown stays one that was allowed.
func (o *opened) note(err error) {
	if o.answered {
		o.f.rec.Why = clip(describe(err))
		return
	}
	o.f.failed(err)
}
