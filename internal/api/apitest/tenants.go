package apitest

import "strings"

// Objects are the names of what one tenant has, one of each kind.
type Objects struct {
	Run      string // "run-…"
	Session  string
	Message  string // of the session
	Secret   string
	Delivery string // of the run's webhook
}

// Foreign is what a route answers a tenant that asks for another's objects.
type Foreign struct {
	// Pattern is the route's.
	Pattern string
	// Path with the objects' names, and a body. An empty path: the route names no
	// object of a tenant.
	Path, Body string
	// Status of the answer; 0: any refusal. A list is answered 200, and must not
	// name any of the objects.
	Status int
	// Behind: the refusal comes from behind the API, so that only a whole server
	// shows it.
	Behind bool
}

// Method is the pattern's.
func (f Foreign) Method() string {
	method, _, _ := strings.Cut(f.Pattern, " ")
	return method
}

// ForeignRequests has lines for every route. A test compares it with the
// routes: whoever adds one says here how it hides other tenants' objects.
func ForeignRequests(o Objects) []Foreign {
	session := "/sessions/" + o.Session
	job, run := "/jobs/job-"+strings.TrimPrefix(o.Run, "run-"), "/jobs/"+o.Run
	spec := func(rest string) string { return `{"prompt":"p",` + rest + `}` }
	resume := spec(`"claude":{"session_id":"` + o.Session + `","resume":true}`)
	fork := spec(`"claude":{"session_id":"` + o.Session + `","resume":true,"fork_session":true}`)
	given := spec(`"podman":{"secrets_env":{"X":"` + o.Secret + `"}}`)
	return []Foreign{
		{Pattern: "POST /run", Path: "/run", Body: resume, Behind: true},
		{Pattern: "POST /run", Path: "/run", Body: given, Behind: true},
		{Pattern: "POST /run/async", Path: "/run/async", Body: resume, Behind: true},
		{Pattern: "POST /run/async", Path: "/run/async", Body: fork, Behind: true},
		{Pattern: "POST /run/async", Path: "/run/async", Body: given, Behind: true},
		{Pattern: "GET /run/stream", Path: "/run/stream?prompt=p&session_id=" + o.Session, Behind: true},
		{Pattern: "GET /run/stream", Path: "/run/stream?run=" + o.Run, Status: 404},
		{Pattern: "POST /run/stream", Path: "/run/stream", Body: resume, Behind: true},
		{Pattern: "POST /run/stream", Path: "/run/stream?run=" + o.Run, Body: spec(`"workdir":"/workspace"`), Status: 404},
		{Pattern: "GET /jobs", Path: "/jobs?kind=all", Status: 200},
		{Pattern: "GET /jobs", Path: "/jobs?kind=all&session_id=" + o.Session, Status: 200},
		{Pattern: "GET /jobs/{id}", Path: job, Status: 404},
		{Pattern: "GET /jobs/{id}", Path: run, Status: 404},
		{Pattern: "DELETE /jobs/{id}", Path: job, Status: 404},
		{Pattern: "GET /jobs/{id}/events", Path: job + "/events", Status: 404},
		{Pattern: "GET /jobs/{id}/events/{seq}/data", Path: job + "/events/1/data", Status: 404},
		{Pattern: "GET /jobs/{id}/attestation", Path: job + "/attestation", Status: 404},
		{Pattern: "GET /jobs/{id}/egress", Path: job + "/egress", Status: 404},
		{Pattern: "PATCH /jobs/{id}/network", Path: job + "/network", Body: `{"mode":"none"}`, Status: 404},
		{Pattern: "GET /jobs/{id}/stream", Path: job + "/stream", Status: 404},
		{Pattern: "GET /sessions", Path: "/sessions", Status: 200},
		{Pattern: "POST /sessions/import"}, // makes one of the caller's own
		{Pattern: "GET /sessions/{id}", Path: session, Status: 404},
		{Pattern: "DELETE /sessions/{id}", Path: session, Status: 404},
		{Pattern: "GET /sessions/{id}/messages", Path: session + "/messages", Status: 404},
		{Pattern: "GET /sessions/{id}/messages/{message_id}", Path: session + "/messages/" + o.Message, Status: 404},
		{Pattern: "GET /sessions/{id}/transcript", Path: session + "/transcript", Status: 404},
		{Pattern: "GET /secrets", Path: "/secrets", Status: 200},
		{Pattern: "POST /secrets"}, // makes one of the caller's own
		{Pattern: "GET /secrets/{name}", Path: "/secrets/" + o.Secret, Status: 404},
		{Pattern: "DELETE /secrets/{name}", Path: "/secrets/" + o.Secret, Status: 404},
		{Pattern: "GET /images"}, // the machine's, the same for all tenants
		{Pattern: "GET /images/search"},
		{Pattern: "GET /images/{name...}", Path: "/images/localhost/nobodys:1", Status: 404},
		{Pattern: "POST /images/pull"},
		{Pattern: "GET /webhooks/deliveries", Path: "/webhooks/deliveries", Status: 200},
		{Pattern: "GET /webhooks/deliveries", Path: "/webhooks/deliveries?job_id=" + o.Run, Status: 200},
		{Pattern: "POST /webhooks/deliveries/{id}/redeliver", Path: "/webhooks/deliveries/" + o.Delivery + "/redeliver", Status: 404},
		{Pattern: "POST /auth/token"},
		{Pattern: "POST /auth/refresh"},
		{Pattern: "GET /auth/validate"},
		{Pattern: "POST /auth/logout"},
		{Pattern: "GET /openapi.json"},
		{Pattern: "GET /openapi.yaml"},
		{Pattern: "GET /swagger/doc.json"},
		{Pattern: "GET /docs"},
		{Pattern: "GET /docs/{file}"},
		{Pattern: "GET /audit"}, // what the caller's own tenant did
		{Pattern: "GET /health"},
		{Pattern: "GET /livez"},
		{Pattern: "GET /readyz"},
		{Pattern: "GET /metrics"}, // of all tenants together
		{Pattern: "GET /version"},
		{Pattern: "GET /claude/status"},
	}
}
