package egress

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"time"
)

// maxModelBody is above what the Messages API takes.
const maxModelBody = 64 << 20

// handler answers one sandbox's requests.
type handler struct {
	g     *gateway
	door  *door
	model *httputil.ReverseProxy
	plain *httputil.ReverseProxy
	out   *http.Transport // of plain; each sandbox has its own, so that none uses another's connections
}

func newHandler(g *gateway, d *door) *handler {
	h := &handler{g: g, door: d}
	h.out = &http.Transport{
		DialContext: func(ctx context.Context, _, target string) (net.Conn, error) {
			return h.dial(ctx, target)
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

// modelPath reports whether a path is one of the Messages API's that the agent
// needs. It compares what was sent, so that no encoded form slips through.
func modelPath(r *http.Request) bool {
	return r.URL.RawPath == "" && (r.URL.Path == "/v1/messages" || r.URL.Path == "/v1/messages/count_tokens")
}

// settingsKey carries the settings that hold for a request from its beginning.
type settingsKey struct{}

func (h *handler) serveModel(w http.ResponseWriter, r *http.Request) {
	s := h.g.settings.Load()
	switch {
	case r.Method == http.MethodHead && r.URL.Path == "/":
		return // the CLI looks whether somebody is there
	case !modelPath(r):
		modelFailure(w, http.StatusNotFound, "not_found_error", "egress forwards only the Messages API, not "+strconv.QuoteToASCII(clip(r.URL.Path)))
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		modelFailure(w, http.StatusMethodNotAllowed, "invalid_request_error", "the Messages API takes POST")
	case s == nil || (!s.demo && s.base == nil):
		modelFailure(w, http.StatusServiceUnavailable, "api_error", "egress has no model endpoint configured")
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxModelBody)
		if s.demo {
			stripCredentials(r.Header)
			h.g.demo.ServeHTTP(w, r)
			return
		}
		h.model.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), settingsKey{}, s)))
	}
}

// rewriteModel aims a request at the model's endpoint and puts the real
// credential on.
func rewriteModel(pr *httputil.ProxyRequest) {
	s, ok := pr.In.Context().Value(settingsKey{}).(*settings)
	if !ok || s.base == nil {
		pr.Out.URL.Host = "" // fails; serveModel always sets it
		return
	}
	pr.SetURL(s.base)
	stripCredentials(pr.Out.Header)
	// No other protocol on this connection: what follows an upgrade is not seen.
	pr.Out.Header.Del("Upgrade")
	pr.Out.Header.Del("Connection")
	for name, values := range s.headers {
		pr.Out.Header[name] = values
	}
	if _, ok := pr.Out.Header["User-Agent"]; !ok {
		pr.Out.Header.Set("User-Agent", "") // else net/http names itself
	}
}

// stripCredentials removes whatever the sandbox might pass for one.
func stripCredentials(h http.Header) {
	for name := range h {
		switch strings.ReplaceAll(strings.ToLower(name), "_", "-") {
		case "authorization", "x-api-key", "proxy-authorization", "cookie":
			delete(h, name)
		}
	}
}

// modelAnswer keeps cookies outside, and tells the CLI not to repeat a request
// whose credential was refused: it has no other, and would try for minutes.
func modelAnswer(r *http.Response) error {
	r.Header.Del("Set-Cookie")
	if r.StatusCode == http.StatusUnauthorized {
		r.Header.Set("X-Should-Retry", "false")
	}
	return nil
}

func (h *handler) modelError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the sandbox has gone
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		modelFailure(w, http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than 64 MiB")
		return
	}
	h.door.log.Warn("egress: the model's endpoint failed", "error", err)
	modelFailure(w, http.StatusBadGateway, "api_error", "the model's endpoint can't be reached: "+describe(err))
}

// modelFailure answers as the Messages API does.
func modelFailure(w http.ResponseWriter, status int, kind, message string) {
	body, err := json.Marshal(map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": message}})
	if err != nil {
		panic(http.ErrAbortHandler) // strings always marshal
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// dial connects to a proxied target under the policy that holds now.
func (h *handler) dial(ctx context.Context, target string) (*net.TCPConn, error) {
	s := h.g.settings.Load()
	if s == nil {
		return nil, errors.New("egress is not configured yet")
	}
	c, err := h.g.dialer.dial(ctx, target, s.allow)
	if err != nil {
		h.door.log.Info("egress: not connected", "target", clip(target), "refused", errors.Is(err, errRefused), "error", err)
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
	h.plain.ServeHTTP(w, r)
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
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	dialFailure(w, err)
}

// connect opens a tunnel.
func (h *handler) connect(w http.ResponseWriter, r *http.Request) {
	up, err := h.dial(r.Context(), r.URL.Host)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
		dialFailure(w, err)
		return
	}
	hijacked, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = up.Close()
		proxyFailure(w, http.StatusInternalServerError, "no tunnel on this connection")
		return
	}
	down, ok := hijacked.(*conn)
	if !ok {
		_, _ = hijacked.Close(), up.Close()
		return
	}
	defer func() { _ = down.Close() }() // gives the slot back
	_ = down.SetDeadline(time.Time{})
	if err := start(down, up, buffered.Reader.Buffered(), buffered); err != nil {
		_ = up.Close()
		return
	}
	relay(down.UnixConn, up, h.g.idle)
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
