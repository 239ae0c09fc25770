package egress

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/netip"
	"time"
)

// handler answers one sandbox's requests.
type handler struct {
	g     *gateway
	door  *door
	model *httputil.ReverseProxy
	plain *httputil.ReverseProxy
	out   *http.Transport // of plain; each sandbox has its own, so that none uses another's connections

	opened chan struct{} // a slot for each opened connection
}

func newHandler(g *gateway, d *door) *handler {
	h := &handler{g: g, door: d, opened: make(chan struct{}, g.maxOpen)}
	h.out = &http.Transport{
		DialContext: func(ctx context.Context, _, target string) (net.Conn, error) {
			return h.dialFor(ctx, target)
		},
		MaxConnsPerHost:        64,
		MaxIdleConns:           16,
		IdleConnTimeout:        15 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
		DisableCompression:     true,
		ExpectContinueTimeout:  time.Second,
	}
	errorLog := slog.NewLogLogger(d.log.Handler(), slog.LevelDebug)
	h.model = &httputil.ReverseProxy{
		Rewrite:        rewriteModel,
		Transport:      g.model,
		FlushInterval:  -1,
		BufferPool:     g.buffers,
		ErrorLog:       errorLog,
		ErrorHandler:   h.modelError,
		ModifyResponse: modelAnswer,
	}
	h.plain = &httputil.ReverseProxy{
		Rewrite:       rewritePlain,
		Transport:     h.out,
		FlushInterval: -1,
		BufferPool:    g.buffers,
		ErrorLog:      errorLog,
		ErrorHandler:  h.plainError,
	}
	return h
}

func (h *handler) close() { h.out.CloseIdleConnections() }

// ServeHTTP tells the three kinds of requests apart by the form of their target.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		h.connect(w, r)
	case r.URL.IsAbs() || r.URL.Host != "":
		h.forward(w, r)
	default:
		h.serveModel(w, r)
	}
}

// dialFor connects on behalf of a proxied request, whose flow is in ctx.
func (h *handler) dialFor(ctx context.Context, address string) (net.Conn, error) {
	to, err := parseTarget(address)
	if err != nil {
		return nil, refuse(err)
	}
	return h.dial(ctx, to)
}

// dial connects to a target under the policies that hold now. That it may be
// asked for was judged before.
func (h *handler) dial(ctx context.Context, to target) (streamConn, error) {
	s := h.g.settings.Load()
	if s == nil {
		return nil, errors.New("egress is not configured yet")
	}
	h.door.mu.Lock()
	r := h.door.rules
	h.door.mu.Unlock()
	if s.upstream.carries(to) {
		return s.upstream.dial(ctx, &h.g.dialer.transport, to, h.g.model.TLSClientConfig)
	}
	c, err := h.g.dialer.dial(ctx, to, s.allow, r)
	if err != nil {
		h.door.log.Info("egress: not connected", "target", to.String(), "refused", errors.Is(err, errRefused), "error", err)
		return nil, err
	}
	return c, nil
}

// forward proxies an absolute-form request.
func (h *handler) forward(w http.ResponseWriter, r *http.Request) {
	if r.URL.Scheme != "http" {
		proxyFailure(w, http.StatusBadRequest, "only http: is proxied by request; use CONNECT")
		return
	}
	host := r.URL.Host
	if r.URL.Port() == "" {
		host = net.JoinHostPort(r.URL.Hostname(), "80")
	}
	f := h.admit(w, r, kindRequest, host)
	if f == nil {
		return
	}
	h.exchange(f, w, r, h.plain) //nolint:contextcheck // the flow's is the request's
}

// exchange has a request answered and counts what passes.
func (h *handler) exchange(f *flow, w http.ResponseWriter, r *http.Request, next http.Handler) {
	out := &countingWriter{ResponseWriter: w}
	body := &countingBody{ReadCloser: r.Body}
	defer func() {
		f.rec.Sent, f.rec.Received, f.rec.Status = body.n.Load(), out.n, out.status
		f.end()
	}()
	ctx := httptrace.WithClientTrace(context.WithValue(f.ctx, flowKey{}, f), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if err := f.reached(peerOf(info.Conn)); err != nil {
				f.cut(errCut)
			}
		},
	})
	r = r.WithContext(ctx)
	r.Body = body
	next.ServeHTTP(out, r)
}

// flowKey carries a request's flow.
type flowKey struct{}

// flowOf is the flow of a request that exchange answers.
func flowOf(ctx context.Context) *flow {
	f, _ := ctx.Value(flowKey{}).(*flow)
	return f
}

// peerOf is the address that a connection leads to; none where a proxy decides.
func peerOf(c net.Conn) netip.Addr {
	if _, ok := c.(proxied); ok {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return addr.Addr().Unmap()
}

// admit begins a flow, or answers why not.
func (h *handler) admit(w http.ResponseWriter, r *http.Request, kind, address string) *flow {
	to, err := parseTarget(address)
	if err != nil {
		err = refuse(err)
		h.door.refused(r.Context(), kind, address, err)
	}
	var f *flow
	if err == nil {
		f, err = h.door.begin(r.Context(), kind, to)
	}
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the sandbox has gone
		}
		dialFailure(w, err)
		return nil
	}
	return f
}

func rewritePlain(pr *httputil.ProxyRequest) {
	pr.Out.Host = pr.Out.URL.Host // never another name than the one dialled
	pr.Out.Header.Del("Upgrade")
	pr.Out.Header.Del("Connection")
	pr.Out.URL.User = nil
	if _, ok := pr.Out.Header["User-Agent"]; !ok {
		pr.Out.Header.Set("User-Agent", "")
	}
}

func (h *handler) plainError(w http.ResponseWriter, r *http.Request, err error) {
	if f := flowOf(r.Context()); f != nil {
		f.failed(err)
	}
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	dialFailure(w, err)
}

// connect opens a tunnel. One to a bound host ends here on both sides.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	f := h.admit(w, r, h.door.kindOf(r.URL.Host), r.URL.Host)
	if f == nil {
		return
	}
	defer f.end()
	var up streamConn
	var o *opened
	var err error
	if f.rec.Kind == kindBinding {
		if o, err = h.openTo(f); err == nil {
			defer o.close()
		}
	} else if up, err = h.tunnelTo(f); err == nil {
		defer func() { _ = up.Close() }()
	}
	if err != nil {
		f.failed(err)
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		dialFailure(w, err)
		return
	}
	hijacked, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		proxyFailure(w, http.StatusInternalServerError, "no tunnel on this connection")
		return
	}
	defer func() { _ = hijacked.Close() }() // gives the slot back
	down, ok := hijacked.(*conn)
	if !ok {
		return
	}
	defer context.AfterFunc(f.ctx, func() { //nolint:contextcheck // the flow's is the request's
		_ = down.Close()
		if up != nil {
			_ = up.Close()
		}
	})()
	_ = down.SetDeadline(time.Time{})
	early := buffered.Reader.Buffered()
	if o != nil {
		if start(down, nil, 0, nil) == nil {
			o.serve(down, io.LimitReader(buffered, int64(early))) //nolint:contextcheck // the flow's is the request's
		}
		return
	}
	if start(down, up, early, buffered) != nil {
		return
	}
	f.rec.Received, f.rec.Sent = relay(down.UnixConn, up, h.g.idle)
	f.rec.Sent += int64(early)
}

// tunnelTo connects to where a tunnel leads.
func (h *handler) tunnelTo(f *flow) (streamConn, error) {
	up, err := h.dial(f.ctx, f.to)
	if err != nil {
		return nil, err
	}
	if err := f.reached(peerOf(up)); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// start answers a CONNECT and passes on what the client sent along with it.
func start(down io.Writer, up io.Writer, early int, from io.Reader) error {
	if _, err := io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return err //nolint:wrapcheck // only its being there matters
	}
	if early > 0 {
		if _, err := io.CopyN(up, from, int64(early)); err != nil {
			return err //nolint:wrapcheck // see above
		}
	}
	return nil
}

// dialFailure answers 403 for what policy refuses and 502 for what fails.
func dialFailure(w http.ResponseWriter, err error) {
	if refused, ok := errors.AsType[*refusedError](err); ok {
		w.Header().Set("X-Stromboli-Egress", "refused")
		proxyFailure(w, http.StatusForbidden, errRefused.Error()+": "+refused.shown)
		return
	}
	if errors.Is(err, errAudit) {
		proxyFailure(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	proxyFailure(w, http.StatusBadGateway, describe(err))
}

func proxyFailure(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "stromboli egress: "+message+"\n") //nolint:gosec // plain text, and the type says so
}

// clip bounds what a sandbox can put into a log line or an answer.
func clip(s string) string { return s[:min(len(s), 200)] }
