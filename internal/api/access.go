package api

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Served is a request that was answered, or whose client went away.
type Served struct {
	Method string // as the client wrote it
	// Route is the path of the route's pattern; empty where there is none, or
	// where the request was refused before that was looked for.
	Route  string
	Status int // 0: the client went away without an answer
	Took   time.Duration
}

// Routes are the paths of all routes' patterns.
func Routes() []string {
	var paths []string
	for _, rt := range (&API{}).routes() {
		_, path, _ := strings.Cut(rt.pattern, " ")
		paths = append(paths, path)
	}
	return paths
}

// note tells the log and Config.Served of a request that has ended.
func (a *API) note(w *recorder, r *http.Request, path string, took time.Duration) {
	_, route, _ := strings.Cut(w.route, " ")
	if a.cfg.Served != nil {
		a.cfg.Served(Served{Method: r.Method, Route: route, Status: w.status, Took: took})
	}
	level := accessLevel(path)
	if a.cfg.NoAccessLog || !a.log.Enabled(r.Context(), level) {
		return
	}
	a.log.LogAttrs(w.origin(r), level, "request", //nolint:contextcheck // the request's
		slog.String("method", clip(r.Method)), slog.String("route", route), slog.String("path", clip(path)),
		slog.Int("status", w.status), slog.Int64("bytes", w.bytes), slog.Duration("took", took), slog.String("remote", r.RemoteAddr))
}

// origin is the request's, with who asks once that is known.
func (w *recorder) origin(r *http.Request) context.Context {
	return stromboli.WithOrigin(r.Context(), stromboli.Origin{Tenant: w.who.Tenant, Principal: w.who.Name})
}

// accessLevel keeps the probes of orchestrators and scrapes of metrics out of
// the ordinary log.
func accessLevel(path string) slog.Level {
	if isProbe(path) || path == "/metrics" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// asked remembers who asks: for the access log, and for what is logged on the
// request's way.
func asked(w http.ResponseWriter, r *http.Request, p stromboli.Principal) *http.Request {
	if rec, ok := w.(*recorder); ok {
		rec.who = p
	}
	return r.WithContext(stromboli.WithOrigin(r.Context(), stromboli.Origin{Tenant: p.Tenant, Principal: p.Name}))
}

// metrics answers with what is measured of all tenants together.
func (a *API) metrics(w http.ResponseWriter, r *http.Request, _ stromboli.Principal) error {
	if a.cfg.Metrics == nil {
		return stromboli.Errorf(stromboli.NotFound, "metrics are switched off (STROMBOLI_METRICS_ENABLED)")
	}
	w.Header().Set("Cache-Control", "no-store")
	a.extendWrite(w)
	a.cfg.Metrics.ServeHTTP(w, r)
	return nil
}
