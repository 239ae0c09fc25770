// Package api is the HTTP edge: it turns requests into specs, waits for runs
// on behalf of callers, and turns runs, events and errors into answers.
//
// It owns the wire: paths, status codes, JSON shapes, the stream format, and
// the checks that keep a web page next door from starting an agent. It promises
// that every body but a stream's is JSON, that text of an internal error never
// leaves the server, and that nothing is started by a request that it refuses.
// It keeps no state that a restart would miss: what happens to runs is decided
// behind the interfaces Runs, Events and System.
package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// Runs is what the API needs of the runner. All methods see only the
// principal's tenant: another tenant's run is stromboli.NotFound.
type Runs interface {
	// Submit makes a run, durable on return, together with its first event.
	// With a known idempotency key and the same body it returns the run that
	// was made before and true; with another body stromboli.KeyReused.
	Submit(ctx context.Context, p stromboli.Principal, s stromboli.Submission) (run stromboli.Run, existing bool, err error)
	// Get returns a run as last stored. Once its run.finished event can be
	// read, Get returns the terminal run, and its session is free.
	Get(ctx context.Context, p stromboli.Principal, id string) (stromboli.Run, error)
	// List returns the runs that the filter, whose tenant is not set, selects,
	// newest first, and the next page's cursor, empty at
	// the end. A cursor that it didn't make is stromboli.Invalid.
	List(ctx context.Context, p stromboli.Principal, f stromboli.RunFilter) (runs []stromboli.Run, next string, err error)
	// Cancel records, durably on return, the wish to end the run. Asked again
	// before the run has ended it succeeds again; afterwards it returns
	// stromboli.Conflict.
	Cancel(ctx context.Context, p stromboli.Principal, id string, reason stromboli.Reason) (stromboli.Run, error)
	// SetNetwork changes what a run may reach and returns what that is; durable
	// and in force on return. stromboli.Conflict when the run has ended.
	SetNetwork(ctx context.Context, p stromboli.Principal, id string, wish stromboli.Network) (stromboli.Network, error)
	// Attestation is what was in force for a run's sandbox; stromboli.NotFound
	// before its agent was started.
	Attestation(ctx context.Context, p stromboli.Principal, id string) (stromboli.Attestation, error)
	// Egress returns up to limit records of a run's connections after a position.
	Egress(ctx context.Context, p stromboli.Principal, id string, after int64, limit int) ([]stromboli.EgressRecord, error)
}

// Events is what the API needs of the event log. Callers have checked by
// Runs.Get that the run is the principal's.
type Events interface {
	// Follow yields the run's events after a position, waits for new ones, and
	// ends after run.finished, when ctx ends, or with an error. Where positions
	// are gone it yields a truncated event.
	Follow(ctx context.Context, runID string, after int64) iter.Seq2[stromboli.Event, error]
	// Events returns up to limit stored events after a position, without
	// waiting; fewer only when there are no more or they are large.
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
	// EventData returns one event's whole data.
	EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error)
}

// Secrets is what the API needs of the secrets' keeper. All methods see only
// the principal's tenant.
type Secrets interface {
	// Create keeps a new secret, durable on return. stromboli.Invalid names the
	// field; stromboli.Conflict where the name is taken.
	Create(ctx context.Context, p stromboli.Principal, name string, value []byte) (stromboli.Secret, error)
	// Describe, as List, tells everything but the value.
	Describe(ctx context.Context, p stromboli.Principal, name string) (stromboli.Secret, error)
	List(ctx context.Context, p stromboli.Principal) ([]stromboli.Secret, error)
	// Delete forgets a secret; what has started keeps what it was given.
	Delete(ctx context.Context, p stromboli.Principal, name string) error
}

// Webhooks is what the API needs of the sender of webhooks. All methods see only
// the principal's tenant.
type Webhooks interface {
	// Deliveries returns those that the filter, whose tenant is not set, selects,
	// newest first, and the next page's cursor, empty at the end. A cursor that
	// it didn't make is stromboli.Invalid.
	Deliveries(ctx context.Context, p stromboli.Principal, f stromboli.DeliveryFilter) (list []stromboli.Delivery, next string, err error)
	// Redeliver makes one due, durable on return, whatever became of it.
	// stromboli.NotFound; stromboli.Conflict while it is being sent.
	Redeliver(ctx context.Context, p stromboli.Principal, id string) (stromboli.Delivery, error)
}

// System tells of the server itself. Its methods answer within seconds.
type System interface {
	// Health lists the parts and their state.
	Health(ctx context.Context) []Component
	// Ready lists why the server can't take runs; empty when it can.
	Ready(ctx context.Context) []string
	// Version describes the build.
	Version(ctx context.Context) Version
	// ClaudeStatus describes the credential for the model that the principal's
	// tenant has.
	ClaudeStatus(ctx context.Context, p stromboli.Principal) ClaudeStatus
}

// Tracer makes spans of requests.
type Tracer interface {
	// Request begins the span of a request; end, which is called once, ends it with
	// the route's pattern, empty where there is none, and the answer's status.
	Request(r *http.Request) (ctx context.Context, end func(pattern string, status int))
}

// ClaudeStatus is the answer of GET /claude/status; it never holds the
// credential.
type ClaudeStatus struct {
	Configured bool   `json:"configured"`
	Message    string `json:"message"`          // a sentence, never empty
	Source     string `json:"source,omitempty"` // the variable or file that has it
	Kind       string `json:"kind,omitempty"`   // api_key, auth_token or oauth
	// ExpiresAt is when it ends, where that is known.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Component is one part's health. Error is empty when it is well.
type Component struct {
	Name  string
	Error string
}

// Version is the answer of GET /version.
type Version struct {
	Version      string   `json:"version"`
	Commit       string   `json:"commit"`
	Capabilities []string `json:"capabilities"`
	// Unsupported are ways to the model that the server doesn't have.
	Unsupported []string `json:"unsupported"`
	ClaudeCLI   string   `json:"claude_cli"`
	Engine      string   `json:"engine"`
}

// Config makes an API. Runs, Events, Sessions, Secrets, Images, Webhooks, System
// and Log are required; zero durations and sizes get the defaults that their comments
// name.
type Config struct {
	Runs     Runs
	Events   Events
	Sessions Sessions
	Secrets  Secrets
	Images   Images
	Webhooks Webhooks
	System   System
	Log      *slog.Logger
	// Audit keeps the audit log; nil: there is none, and GET /audit says so.
	Audit Audit
	// Tracer makes spans of requests, those for health apart; nil: there are none.
	Tracer Tracer

	// Metrics answers GET /metrics; nil: there are none.
	Metrics http.Handler
	// Served, if set, is told of each request once it has ended. It must be quick.
	Served func(Served)
	// NoAccessLog: requests leave no line in the log.
	NoAccessLog bool

	// Render returns the lines of the assistant's text in one line of the CLI:
	// nil for lines without a completed text block. It must be deterministic,
	// since positions within streams count its lines.
	Render func(line []byte) []string
	// Visible reports whether a line of the CLI belongs into a stream-json
	// stream; lines of the control protocol don't. Nil: all do.
	Visible func(line []byte) bool

	// Access is who may call; Auth knows credentials. Auth is required for
	// AccessAuth; otherwise it may be nil, and serves /auth/* alone.
	Access Access
	Auth   Auth
	// RateLimit bounds what one address and one principal may ask. /health,
	// /livez and /readyz are not limited.
	RateLimit RateLimit
	// AllowedHosts are names (with or without a port) that requests may be
	// addressed to while authentication is off, besides loopback and the
	// address that the connection came in on.
	AllowedHosts []string

	// TLS is what connections are served with; it needs no NextProtos. Nil: plain
	// HTTP/1.1.
	TLS *tls.Config

	// MaxConnections caps open connections, MaxPerAddress those from one IPv4
	// address or IPv6 /64; 4,096 and 1,024. Above a cap only /health, /livez and
	// /readyz are answered as always.
	MaxConnections, MaxPerAddress int

	HeaderTimeout   time.Duration // to read a request's header; 20 s
	IdleTimeout     time.Duration // between two requests on a connection; 2 min
	MaxBody         int64         // bytes of a request body; 10 MiB
	BodyTimeout     time.Duration // to read a request body; 1 min
	WriteTimeout    time.Duration // of one write to a client; 30 s
	Heartbeat       time.Duration // between signs of life in a stream; 15 s
	DisconnectGrace time.Duration // for a stream's client to come back; 30 s
	Drain           time.Duration // for requests in flight at the stop; 10 s
	Retry           time.Duration // told to streams at the stop, ± half; 2 s
}

// API serves the contract's endpoints.
type API struct {
	cfg      Config
	log      *slog.Logger
	hosts    hostList
	limits   atomic.Pointer[limits]
	proxies  atomic.Pointer[[]netip.Prefix] // trusted; never nil
	mux      *http.ServeMux
	presence presence

	drainOnce sync.Once
	stopping  chan struct{} // closed: streams end, no new runs
}

// New makes an API and starts nothing.
func New(cfg Config) (*API, error) {
	if cfg.Runs == nil || cfg.Events == nil || cfg.Sessions == nil || cfg.Secrets == nil || cfg.Images == nil || cfg.Webhooks == nil || cfg.System == nil || cfg.Log == nil || cfg.Render == nil {
		return nil, errors.New("api: Runs, Events, Sessions, Secrets, Images, Webhooks, System, Log and Render are required")
	}
	if cfg.Visible == nil {
		cfg.Visible = func([]byte) bool { return true }
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 10 << 20
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 4096
	}
	if cfg.MaxPerAddress == 0 {
		cfg.MaxPerAddress = 1024
	}
	if cfg.MaxConnections < 0 || cfg.MaxPerAddress < 0 {
		return nil, errors.New("api: caps on connections must be positive")
	}
	orDefault(&cfg.HeaderTimeout, 20*time.Second)
	orDefault(&cfg.IdleTimeout, 2*time.Minute)
	orDefault(&cfg.BodyTimeout, time.Minute)
	orDefault(&cfg.WriteTimeout, 30*time.Second)
	orDefault(&cfg.Heartbeat, 15*time.Second)
	orDefault(&cfg.DisconnectGrace, 30*time.Second)
	orDefault(&cfg.Drain, 10*time.Second)
	orDefault(&cfg.Retry, 2*time.Second)
	if cfg.Access == AccessAuth && cfg.Auth == nil {
		return nil, errors.New("api: AccessAuth needs Auth")
	}
	hosts, err := newHostList(cfg.AllowedHosts)
	if err != nil {
		return nil, err
	}
	a := &API{cfg: cfg, log: cfg.Log, hosts: hosts, mux: http.NewServeMux(), stopping: make(chan struct{})}
	if err := a.SetRateLimit(cfg.RateLimit); err != nil {
		return nil, err
	}
	a.presence.runs = make(map[string]*watch)
	for _, rt := range a.routes() {
		if rt.acts && rt.audit == "" {
			return nil, fmt.Errorf("api: nobody has said what the audit log calls %s", rt.pattern)
		}
		a.mux.Handle(rt.pattern, a.wrap(rt))
	}
	return a, nil
}

func orDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// handler is an endpoint. An error that it returns before it has written
// anything becomes the answer.
type handler func(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error

type route struct {
	pattern string
	acts    bool // it starts or changes something: foreign pages are refused
	// audit is what the audit log calls what the route does. Required where it acts.
	audit string
	// What it takes: one of the next three is set. Nothing takes all scopes.
	scope    stromboli.Scopes // these
	anyScope bool             // credentials, with whatever scopes
	open     bool             // no credentials; given ones are ignored
	jwt      bool             // there is nothing here without a JWT secret: 503
	lines    bool             // it takes lines of JSON in place of JSON
	serve    handler
}

func (a *API) routes() []route {
	return []route{
		{pattern: "POST /run", acts: true, audit: "run.submit", scope: stromboli.ScopeRun, serve: a.run},
		{pattern: "POST /run/async", acts: true, audit: "run.submit", scope: stromboli.ScopeRun, serve: a.runAsync},
		{pattern: "GET /run/stream", acts: true, audit: "run.submit", scope: stromboli.ScopeRun, serve: a.runStreamGet},
		{pattern: "POST /run/stream", acts: true, audit: "run.submit", scope: stromboli.ScopeRun, serve: a.runStreamPost},
		{pattern: "GET /jobs", scope: stromboli.ScopeRead, serve: a.listJobs},
		{pattern: "GET /jobs/{id}", scope: stromboli.ScopeRead, serve: a.getJob},
		{pattern: "DELETE /jobs/{id}", acts: true, audit: "run.cancel", scope: stromboli.ScopeRun, serve: a.cancelJob},
		{pattern: "GET /jobs/{id}/events", scope: stromboli.ScopeRead, serve: a.jobEvents},
		{pattern: "GET /jobs/{id}/events/{seq}/data", scope: stromboli.ScopeRead, serve: a.eventData},
		{pattern: "GET /jobs/{id}/attestation", scope: stromboli.ScopeRead, serve: a.jobAttestation},
		{pattern: "GET /jobs/{id}/egress", scope: stromboli.ScopeRead, serve: a.jobEgress},
		{pattern: "PATCH /jobs/{id}/network", acts: true, audit: "run.network", scope: stromboli.ScopeRun, serve: a.setNetwork},
		{pattern: "GET /jobs/{id}/stream", scope: stromboli.ScopeRead, serve: a.jobStream},
		{pattern: "GET /sessions", scope: stromboli.ScopeRead, serve: a.listSessions},
		{pattern: "POST /sessions/import", acts: true, audit: "session.import", lines: true, scope: stromboli.ScopeRun, serve: a.importSession},
		{pattern: "GET /sessions/{id}", scope: stromboli.ScopeRead, serve: a.getSession},
		{pattern: "DELETE /sessions/{id}", acts: true, audit: "session.delete", scope: stromboli.ScopeRun, serve: a.deleteSession},
		{pattern: "GET /sessions/{id}/messages", scope: stromboli.ScopeRead, serve: a.listMessages},
		{pattern: "GET /sessions/{id}/messages/{message_id}", scope: stromboli.ScopeRead, serve: a.getMessage},
		{pattern: "GET /sessions/{id}/transcript", audit: "session.export", scope: stromboli.ScopeRead, serve: a.getTranscript},
		{pattern: "GET /secrets", scope: stromboli.ScopeRead, serve: a.listSecrets},
		{pattern: "POST /secrets", acts: true, audit: "secret.create", scope: stromboli.ScopeAdmin, serve: a.createSecret},
		{pattern: "GET /secrets/{name}", scope: stromboli.ScopeRead, serve: a.getSecret},
		{pattern: "DELETE /secrets/{name}", acts: true, audit: "secret.delete", scope: stromboli.ScopeAdmin, serve: a.deleteSecret},
		{pattern: "POST /auth/token", acts: true, audit: "auth.login", anyScope: true, jwt: true, serve: a.authToken},
		{pattern: "POST /auth/refresh", acts: true, audit: "auth.refresh", open: true, jwt: true, serve: a.authRefresh},
		{pattern: "GET /auth/validate", anyScope: true, jwt: true, serve: a.authValidate},
		{pattern: "POST /auth/logout", acts: true, audit: "auth.logout", anyScope: true, jwt: true, serve: a.authLogout},
		{pattern: "GET /images", scope: stromboli.ScopeRead, serve: a.listImages},
		{pattern: "GET /images/search", scope: stromboli.ScopeRead, serve: a.searchImages},
		{pattern: "POST /images/pull", acts: true, audit: "image.pull", scope: stromboli.ScopeRun, serve: a.pullImage},
		{pattern: "GET /images/{name...}", scope: stromboli.ScopeRead, serve: a.getImage},
		{pattern: "GET /webhooks/deliveries", scope: stromboli.ScopeRead, serve: a.listDeliveries},
		{pattern: "POST /webhooks/deliveries/{id}/redeliver", acts: true, audit: "webhook.redeliver", scope: stromboli.ScopeRun, serve: a.redeliver},
		{pattern: "GET /audit", audit: "audit.read", scope: stromboli.ScopeAdmin, serve: a.listAudit},
		{pattern: "GET /health", open: true, serve: a.health},
		{pattern: "GET /livez", open: true, serve: a.livez},
		{pattern: "GET /readyz", open: true, serve: a.readyz},
		{pattern: "GET /metrics", scope: stromboli.ScopeAdmin, serve: a.metrics},
		{pattern: "GET /version", scope: stromboli.ScopeRead, serve: a.version},
		{pattern: "GET /openapi.json", open: true, serve: a.serveDocument("openapi.json", "application/json")},
		{pattern: "GET /openapi.yaml", open: true, serve: a.serveDocument("openapi.yaml", "application/yaml")},
		{pattern: "GET /swagger/doc.json", open: true, serve: a.serveDocument("swagger.json", "application/json")},
		{pattern: "GET /docs", open: true, serve: a.docsPage},
		{pattern: "GET /docs/{file}", open: true, serve: a.docsAsset},
		{pattern: "GET /claude/status", scope: stromboli.ScopeRead, serve: a.claudeStatus},
	}
}

// wrap puts the checks that depend on the route before its handler.
func (a *API) wrap(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, id, err := a.admit(rt, w, r)
		if err == nil {
			err = a.audited(rt, w, r, id)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	})
}

// admit makes the checks, and returns the request with what is known of who
// asks.
func (a *API) admit(rt route, w http.ResponseWriter, r *http.Request) (*http.Request, auth.Identity, error) {
	if rt.acts {
		if err := checkOrigin(r); err != nil {
			return r, auth.Identity{}, a.denied(rt, r, auth.Identity{}, err)
		}
	}
	id, err := a.identify(rt, w, r) //nolint:contextcheck // the request's own
	if id.Tenant != "" {            // known, if not permitted
		r = asked(w, r, id.Principal)
	}
	if err != nil {
		return r, id, a.denied(rt, r, id, err)
	}
	if rt.acts {
		if err := a.checkContentType(rt, w, r); err != nil {
			return r, id, err
		}
	}
	if rt.jwt {
		r = r.WithContext(context.WithValue(r.Context(), identityKey{}, id))
	}
	return r, id, nil
}

// Drain makes the server not ready, refuses new runs, and ends the streams
// with a hint when to come back. It returns at once and may be called again.
func (a *API) Drain() {
	a.drainOnce.Do(func() { close(a.stopping) })
}

func (a *API) draining() bool {
	select {
	case <-a.stopping:
		return true
	default:
		return false
	}
}
