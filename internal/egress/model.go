package egress

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// maxModelBody is above what the Messages API takes.
const maxModelBody = 64 << 20

// modelPath reports whether a path is one of the Messages API's that the agent
// needs. It compares what was sent, so that no encoded form slips through.
func modelPath(r *http.Request) bool {
	return r.URL.RawPath == "" && (r.URL.Path == "/v1/messages" || r.URL.Path == "/v1/messages/count_tokens")
}

func (h *handler) serveModel(w http.ResponseWriter, r *http.Request) {
	s, to := h.g.settings.Load(), &endpoint{}
	if s != nil {
		to = s.of(h.door.tenant())
	}
	switch {
	case r.Method == http.MethodHead && r.URL.Path == "/":
		return // the CLI looks whether somebody is there
	case s != nil && s.spans && r.URL.RawPath == "" && r.URL.Path == spansPath:
		h.takeSpans(w, r)
	case !modelPath(r):
		modelFailure(w, http.StatusNotFound, "not_found_error", "egress forwards only the Messages API, not "+strconv.QuoteToASCII(clip(r.URL.Path)))
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		modelFailure(w, http.StatusMethodNotAllowed, "invalid_request_error", "the Messages API takes POST")
	case s == nil || (!s.demo && to.base == nil):
		modelFailure(w, http.StatusServiceUnavailable, "api_error", "egress has no model endpoint configured")
	default:
		h.askModel(s, to, w, r)
	}
}

// askModel has a request to the model answered, if the sandbox's rules permit
// it. A refusal tells the CLI not to repeat itself.
func (h *handler) askModel(s *settings, to *endpoint, w http.ResponseWriter, r *http.Request) {
	at := to.target()
	if s.demo {
		at = (&endpoint{}).target()
	}
	f, err := h.door.begin(r.Context(), kindModel, at)
	if err != nil {
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the sandbox has gone
		}
		if refused, ok := errors.AsType[*refusedError](err); ok {
			w.Header().Set("X-Should-Retry", "false")
			modelFailure(w, http.StatusForbidden, "permission_error", errRefused.Error()+": "+refused.shown)
			return
		}
		modelFailure(w, http.StatusServiceUnavailable, "api_error", err.Error())
		return
	}
	f.settings, f.endpoint = s, to
	r.Body = http.MaxBytesReader(w, r.Body, maxModelBody)
	if s.demo {
		stripCredentials(r.Header)
		h.exchange(f, w, r, h.g.demo) //nolint:contextcheck // the flow's is the request's
		return
	}
	h.exchange(f, cookieless{w}, r, h.model) //nolint:contextcheck // see above
}

// rewriteModel aims a request at the model's endpoint and puts the real
// credential on.
func rewriteModel(pr *httputil.ProxyRequest) {
	to := flowOf(pr.In.Context()).endpoint
	pr.SetURL(to.base)
	stripCredentials(pr.Out.Header)
	// No other protocol on this connection: what follows an upgrade is not seen.
	pr.Out.Header.Del("Upgrade")
	pr.Out.Header.Del("Connection")
	pr.Out.Header.Del("Accept-Encoding") // an answer that can be counted
	for name, values := range to.headers {
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

// modelAnswer tells the CLI not to repeat a request
// whose credential was refused: it has no other, and would try for minutes.
func modelAnswer(r *http.Response) error {
	if f := flowOf(r.Request.Context()); f != nil {
		measure(r, func(u *stromboli.Usage) { f.rec.Usage = u })
	}
	if r.StatusCode == http.StatusUnauthorized {
		r.Header.Set("X-Should-Retry", "false")
	}
	return nil
}

func (h *handler) modelError(w http.ResponseWriter, r *http.Request, err error) {
	if f := flowOf(r.Context()); f != nil {
		f.failed(err)
	}
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
