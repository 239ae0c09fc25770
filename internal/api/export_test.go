package api

import "github.com/tomblancdev/stromboli"

// RouteInfo is what a test needs of a route.
type RouteInfo struct {
	Pattern        string
	Scope          stromboli.Scopes
	AnyScope, Open bool
	Acts           bool
	Audit          string
}

// Routes lists the routes.
func (a *API) Routes() []RouteInfo {
	var out []RouteInfo
	for _, rt := range a.routes() {
		out = append(out, RouteInfo{rt.pattern, rt.scope, rt.anyScope, rt.open, rt.acts, rt.audit})
	}
	return out
}
