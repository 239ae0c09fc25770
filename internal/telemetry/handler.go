package telemetry

import (
	"context"
	"log/slog"

	"github.com/tomblancdev/stromboli"
)

// The attributes that tell a line's origin.
const (
	keyRequest   = "request_id"
	keyRun       = "run_id"
	keyTenant    = "tenant"
	keyPrincipal = "principal"
)

// originBit is an attribute's place in the set of those that a line has; 0: it
// tells no origin.
func originBit(key string) uint8 {
	switch key {
	case keyRequest:
		return 1
	case keyRun:
		return 2
	case keyTenant:
		return 4
	case keyPrincipal:
		return 8
	}
	return 0
}

// handler adds the context's origin to a line, as far as the line doesn't tell
// it already, and has a level that can change.
type handler struct {
	slog.Handler
	level slog.Leveler
	has   uint8 // what every line tells by itself
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	o := stromboli.OriginOf(ctx)
	if o != (stromboli.Origin{}) {
		has := h.has
		r.Attrs(func(a slog.Attr) bool {
			has |= originBit(a.Key)
			return true
		})
		for _, a := range [...]struct{ key, value string }{
			{keyRequest, o.RequestID}, {keyRun, o.RunID}, {keyTenant, o.Tenant}, {keyPrincipal, o.Principal},
		} {
			if a.value != "" && has&originBit(a.key) == 0 {
				r.AddAttrs(slog.String(a.key, a.value))
			}
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	has := h.has
	for _, a := range attrs {
		has |= originBit(a.Key)
	}
	return &handler{Handler: h.Handler.WithAttrs(attrs), level: h.level, has: has}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{Handler: h.Handler.WithGroup(name), level: h.level, has: h.has}
}
