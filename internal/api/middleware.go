package api

import (
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Handler returns the whole API: request id, access log, panic guard, rate
// limit of addresses, Host check and router, from the outside in.
func (a *API) Handler() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-ID")
		if !saneRequestID(id) {
			id = stromboli.NewToken()
		}
		r = r.WithContext(stromboli.WithOrigin(r.Context(), stromboli.Origin{RequestID: id}))
		w := &recorder{ResponseWriter: rw}
		w.Header().Set("X-Request-ID", id)
		secure(w.Header())
		start, path := time.Now(), r.URL.Path
		if a.cfg.Tracer != nil && !isProbe(path) {
			ctx, end := a.cfg.Tracer.Request(r)
			r = r.WithContext(ctx) //nolint:contextcheck // made of the request's
			defer func() { end(r.Pattern, w.status) }()
		}
		// After a panic the guard has answered, or aborts the connection.
		defer func() { a.note(w, r, path, time.Since(start)) }()
		defer a.guard(w, r)
		a.limitBody(w, r)
		a.serve(w, r)
		a.linger(w, r)
	})
}

// guard answers 500 for a panic, or cuts the connection when part of another
// answer is out already.
func (a *API) guard(w *recorder, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		panic(v)
	}
	a.log.ErrorContext(w.origin(r), "panic in a handler", "panic", v, "stack", string(debug.Stack())) //nolint:contextcheck // the request's
	if w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	a.fail(w, r, stromboli.Errorf(stromboli.Internal, "panic"))
}

// secure sets what keeps an answer from being more in a browser than data: it is
// not sniffed, loads and runs nothing, and is framed and embedded by nobody.
func secure(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
}

func (a *API) serve(w *recorder, r *http.Request) {
	if !isProbe(r.URL.Path) {
		if err := a.limits.Load().address(w, r); err != nil {
			a.fail(w, r, err)
			return
		}
	}
	if tooMany(r) {
		w.Header().Set("Connection", "close")
		if !isProbe(r.URL.Path) {
			a.fail(w, r, errTooMany())
			return
		}
	}
	leave, room := share(r)
	defer leave()
	if !room && !isProbe(r.URL.Path) {
		a.fail(w, r, errTooMany())
		return
	}
	if err := a.checkHeaders(r); err != nil {
		a.fail(w, r, err)
		return
	}
	cleanPath(r)
	_, w.route = a.mux.Handler(r)
	if w.route != "" {
		a.mux.ServeHTTP(w, r)
		return
	}
	// The mux's own answer says which it is, and which methods are allowed.
	probe := &probe{header: make(http.Header)}
	a.mux.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		a.fail(w, r, stromboli.Errorf(stromboli.MethodForbidden, "%s is not allowed here", clip(r.Method)))
		return
	}
	a.fail(w, r, stromboli.Errorf(stromboli.NotFound, "there is nothing at %s", clip(r.URL.Path)))
}

func errTooMany() error {
	return &stromboli.Error{
		Code: codeTooManyConnections, RetryAfter: overflowLife,
		Message: "too many connections are open, from this address or in all; close some, or try again later",
	}
}

// checkHeaders refuses requests to a closed server, whatever they are addressed
// to, those addressed to another host, and large headers.
func (a *API) checkHeaders(r *http.Request) error {
	if a.cfg.Access == AccessClosed && !isProbe(r.URL.Path) {
		return errClosed()
	}
	if a.cfg.Access != AccessAuth {
		if err := a.hosts.check(r); err != nil {
			return err
		}
	}
	limit := maxOtherHeader
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/run/stream") {
		limit = maxStreamURL
	}
	size := 0
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v)
		}
	}
	if len(r.RequestURI) > limit || size > maxOtherHeader {
		return stromboli.Errorf(codeHeaderTooLarge, "the request's header is too large")
	}
	return nil
}

// cleanPath removes doubled slashes, "." and ".." as the mux would by a
// redirect, which clients of this API don't follow with a body. Escaped
// slashes stay part of their segment.
func cleanPath(r *http.Request) {
	escaped := r.URL.EscapedPath()
	if !strings.Contains(escaped, "//") && !strings.Contains(escaped, "/.") {
		return
	}
	var kept []string
	parts := strings.Split(escaped, "/")
	for i, p := range parts {
		switch p {
		case "", ".":
			if i == len(parts)-1 && len(kept) > 0 {
				kept = append(kept, "") // the trailing slash means something
			}
		case "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, p)
		}
	}
	clean := "/" + strings.Join(kept, "/")
	path, err := url.PathUnescape(clean)
	if err != nil {
		return // EscapedPath is well-formed; the mux decides
	}
	u := *r.URL
	u.Path, u.RawPath = path, clean
	r.URL = &u
}

func requestID(r *http.Request) string { return stromboli.OriginOf(r.Context()).RequestID }

func saneRequestID(s string) bool {
	if len(s) < 1 || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// clip bounds what a client sent for a log line or a message.
func clip(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// recorder remembers what the log tells of a request, and the status for the
// panic guard.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	route  string // the pattern; empty: none, or not looked for
	who    stromboli.Principal
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// probe takes the mux's own 404 or 405 and throws its text away.
type probe struct {
	header http.Header
	status int
}

func (p *probe) Header() http.Header         { return p.header }
func (p *probe) Write(b []byte) (int, error) { return len(b), nil }
func (p *probe) WriteHeader(status int)      { p.status = status }
