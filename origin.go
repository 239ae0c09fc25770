package stromboli

import (
	"cmp"
	"context"
)

// Origin tells whose work something is: the request that asked for it, the run
// that it belongs to, and the caller. Contexts carry it, so that whatever is
// logged on the way can be told from the rest. Empty fields aren't known.
type Origin struct {
	RequestID string
	RunID     string
	Tenant    string
	Principal string // the caller's name
}

type originKey struct{}

// WithOrigin returns a context that carries o's fields, and those of ctx's
// origin that o leaves empty.
func WithOrigin(ctx context.Context, o Origin) context.Context {
	have := OriginOf(ctx)
	return context.WithValue(ctx, originKey{}, Origin{
		RequestID: cmp.Or(o.RequestID, have.RequestID), RunID: cmp.Or(o.RunID, have.RunID),
		Tenant: cmp.Or(o.Tenant, have.Tenant), Principal: cmp.Or(o.Principal, have.Principal),
	})
}

// OriginOf is what ctx carries.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}

// Origin is whose work the run is.
func (r Run) Origin() Origin {
	return Origin{RunID: r.ID, Tenant: r.Tenant, Principal: r.CreatedBy}
}
