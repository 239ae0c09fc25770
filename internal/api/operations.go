package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/tomblancdev/stromboli"
)

// operation is what the API's document tells of a route beside its path. Bodies
// are zero values of the types that the handlers decode and encode.
type operation struct {
	id      string // of generated clients' methods
	tag     string
	summary string
	query   []parameter
	body    any
	answers map[int]answerOf
	// errors are the statuses of refusals beyond those that every route may give.
	errors []int
}

// parameter is one of the query or the header.
type parameter struct {
	name, in, about string
	value           any // of its type
	required        bool
}

// answerOf is an answer's body; one that is no JSON has a type of its own. With
// both it is what the request's Accept header says.
type answerOf struct {
	body any
	as   string
}

func ok(body any) map[int]answerOf { return map[int]answerOf{http.StatusOK: {body: body}} }

func answers(status int, body any) map[int]answerOf { return map[int]answerOf{status: {body: body}} }

// events is a stream that may turn out to have nothing more.
func eventStream() map[int]answerOf {
	return map[int]answerOf{http.StatusOK: {as: "text/event-stream"}, http.StatusNoContent: {}}
}

func inQuery(name, about string, value any) parameter {
	return parameter{name: name, in: "query", about: about, value: value}
}

func idempotencyHeader() parameter {
	return parameter{name: "Idempotency-Key", in: "header", about: "Names the request, so that it can be repeated for 24 hours without another run.", value: ""}
}

func pageParams() []parameter {
	return []parameter{
		inQuery("limit", "At most so many, 1 to 1,000, which is the default.", 0),
		inQuery("cursor", "next_cursor of the page before.", ""),
	}
}

func afterParams() []parameter {
	return []parameter{
		inQuery("after", "The position after which to begin; 0 by default.", int64(0)),
		inQuery("limit", "At most so many, 1 to 1,000, which is the default.", 0),
	}
}

// operations describes every route, by its pattern; the documents themselves have
// none.
func operations() map[string]operation {
	const runs, jobs, sessions, secrets, images, callers, webhooks, system = "execution", "jobs", "sessions", "secrets", "images", "auth", "webhooks", "system"
	lastEventID := parameter{name: "Last-Event-ID", in: "header", about: "The id of the last event that was received: the stream goes on after it.", value: ""}
	return map[string]operation{
		"POST /run": {
			id: "run", tag: runs, summary: "Runs a prompt and waits for its end.", query: []parameter{idempotencyHeader()}, body: stromboli.RunSpec{},
			answers: map[int]answerOf{
				http.StatusOK: {body: runResponse{}}, http.StatusConflict: {body: runResponse{}}, http.StatusInternalServerError: {body: runResponse{}},
				http.StatusServiceUnavailable: {body: runResponse{}}, http.StatusGatewayTimeout: {body: runResponse{}},
			}, errors: []int{http.StatusNotFound},
		},
		"POST /run/async": {
			id: "runAsync", tag: runs, summary: "Begins a run and answers at once.", query: []parameter{idempotencyHeader()}, body: stromboli.RunSpec{},
			answers: answers(http.StatusAccepted, asyncResponse{}), errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		},
		"GET /run/stream": {
			id: "runStream", tag: runs, summary: "Begins a run and streams its output as server-sent events.", query: []parameter{
				{name: "prompt", in: "query", about: "The message to the agent; not needed with run.", value: ""},
				inQuery("workdir", "The agent's working directory.", ""),
				inQuery("session_id", "A session, which is resumed if it exists and created otherwise.", ""),
				inQuery("run", "A run to go on watching; nothing is begun.", ""), lastEventID,
			}, answers: eventStream(), errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		},
		"POST /run/stream": {
			id: "runStreamPost", tag: runs, summary: "Begins a run and streams its output as server-sent events.",
			query: []parameter{inQuery("run", "A run to go on watching; nothing is begun.", ""), lastEventID, idempotencyHeader()}, body: stromboli.RunSpec{},
			answers: eventStream(), errors: []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable},
		},
		"GET /jobs": {
			id: "listJobs", tag: jobs, summary: "Lists runs, newest first.", query: append(pageParams(),
				inQuery("status", "One of pending, running, completed, failed, crashed, cancelled, or several with commas.", ""),
				inQuery("session_id", "A session's id or alias.", ""), inQuery("since", "A time: made then or later.", time.Time{}),
				inQuery("kind", "One of async (the default), sync, stream, all.", ""),
			), answers: ok(jobList{}),
		},
		"GET /jobs/{id}":    {id: "getJob", tag: jobs, summary: "Tells of a run.", answers: ok(jobResponse{})},
		"DELETE /jobs/{id}": {id: "cancelJob", tag: jobs, summary: "Ends a run; the wish is durable on return.", answers: ok(jobCancelled{}), errors: []int{http.StatusConflict}},
		"GET /jobs/{id}/events": {
			id: "listEvents", tag: jobs, summary: "Lists a run's events in their order.", query: afterParams(), answers: ok(eventList{}),
		},
		"GET /jobs/{id}/events/{seq}/data": {id: "getEventData", tag: jobs, summary: "Gives one event's data, whole.", answers: ok(json.RawMessage{})},
		"GET /jobs/{id}/attestation":       {id: "getAttestation", tag: jobs, summary: "Tells what was in force for a run's sandbox.", answers: ok(stromboli.Attestation{})},
		"GET /jobs/{id}/egress": {
			id: "listEgress", tag: jobs, summary: "Lists the connections of a run.", query: afterParams(), answers: ok(egressList{}),
		},
		"PATCH /jobs/{id}/network": {
			id: "setNetwork", tag: jobs, summary: "Changes what a live run may reach.", body: stromboli.Network{}, answers: ok(stromboli.Network{}), errors: []int{http.StatusConflict},
		},
		"GET /jobs/{id}/stream": {
			id: "streamEvents", tag: jobs, summary: "Streams a run's events as server-sent events, to its end.",
			query:   []parameter{inQuery("after", "The position after which to begin; 0 by default.", int64(0)), lastEventID},
			answers: eventStream(),
		},
		"GET /sessions": {
			id: "listSessions", tag: sessions, summary: "Lists sessions, newest first.", query: append(pageParams(),
				inQuery("alias", "The session of that alias.", ""), inQuery("since", "A time: made then or later.", time.Time{}),
				inQuery("active", "Whether a run holds it.", false),
			), answers: ok(sessionList[sessionBody]{}),
		},
		"POST /sessions/import": {
			id: "importSession", tag: sessions, summary: "Makes a session of an agent CLI's transcript.",
			query: []parameter{inQuery("session_id", "A UUID, or an alias; without it the transcript's own id.", "")},
			body:  lines{}, answers: answers(http.StatusCreated, sessionBody{}), errors: []int{http.StatusConflict},
		},
		"GET /sessions/{id}": {id: "getSession", tag: sessions, summary: "Tells of a session.", answers: ok(sessionBody{})},
		"DELETE /sessions/{id}": {
			id: "deleteSession", tag: sessions, summary: "Removes a session and all that belongs to it.", answers: ok(sessionDeleted{}), errors: []int{http.StatusConflict},
		},
		"GET /sessions/{id}/messages": {
			id: "listMessages", tag: sessions, summary: "Lists the messages of a session, oldest first.", query: []parameter{
				inQuery("offset", "The messages before the first one; 0 by default.", int64(0)), inQuery("limit", "At most so many, 1 to 200; 50 by default.", 0),
			}, answers: ok(messageList{}),
		},
		"GET /sessions/{id}/messages/{message_id}": {id: "getMessage", tag: sessions, summary: "Gives one message, whole.", answers: ok(messageAnswer{})},
		"GET /sessions/{id}/transcript": {
			id: "getTranscript", tag: sessions, summary: "Gives the agent CLI's own file.", answers: map[int]answerOf{http.StatusOK: {as: "application/jsonl"}},
		},
		"GET /secrets":           {id: "listSecrets", tag: secrets, summary: "Lists secrets, never their values.", answers: ok(secretList{})},
		"POST /secrets":          {id: "createSecret", tag: secrets, summary: "Keeps a secret.", body: newSecret{}, answers: answers(http.StatusCreated, secretDone{}), errors: []int{http.StatusConflict}},
		"GET /secrets/{name}":    {id: "getSecret", tag: secrets, summary: "Tells of a secret, never its value.", answers: ok(secretBody{})},
		"DELETE /secrets/{name}": {id: "deleteSecret", tag: secrets, summary: "Forgets a secret.", answers: ok(secretDone{})},
		"POST /auth/token": {
			id: "createToken", tag: callers, summary: "Exchanges an API token for JWTs.", body: tokenRequest{}, answers: ok(pairBody{}),
		},
		"POST /auth/refresh": {
			id: "refreshToken", tag: callers, summary: "Exchanges a refresh token, once, for new JWTs.", body: refreshRequest{}, answers: ok(pairBody{}),
			errors: []int{http.StatusUnauthorized, http.StatusMisdirectedRequest, http.StatusTooManyRequests},
		},
		"GET /auth/validate": {id: "validateToken", tag: callers, summary: "Tells whose the credential is and when it ends.", answers: ok(validBody{})},
		"POST /auth/logout":  {id: "logout", tag: callers, summary: "Makes a login's JWTs void.", answers: ok(logoutBody{})},
		"GET /images": {
			id: "listImages", tag: images, summary: "Lists the images on this machine, the best for agents first.", answers: ok(imageList{}),
			errors: []int{http.StatusServiceUnavailable},
		},
		"GET /images/{name...}": {
			id: "getImage", tag: images, summary: "Tells of an image; slashes in its name may be escaped.", answers: ok(imageDetail{}),
			errors: []int{http.StatusServiceUnavailable},
		},
		"GET /images/search": {
			id: "searchImages", tag: images, summary: "Asks a registry for images.", query: []parameter{
				{name: "q", in: "query", about: "What to look for; the registry before the first slash, else Docker Hub, is asked.", value: "", required: true},
				inQuery("limit", "At most so many, 1 to 100; 25 by default.", 0), inQuery("no_trunc", "Whether descriptions are whole.", false),
			}, answers: ok(imageSearch{}), errors: []int{http.StatusBadGateway, http.StatusServiceUnavailable},
		},
		"POST /images/pull": {
			id: "pullImage", tag: images, summary: "Pulls an image and waits for it; with Accept: text/event-stream its progress is streamed.", body: pullRequest{},
			answers: map[int]answerOf{http.StatusOK: {body: pullResponse{}, as: "text/event-stream"}}, errors: []int{http.StatusNotFound, http.StatusBadGateway},
		},
		"GET /webhooks/deliveries": {
			id: "listDeliveries", tag: webhooks, summary: "Lists what jobs' webhooks were or are to be told, newest first.", query: append(pageParams(),
				inQuery("status", "One of pending, sending, delivered, dead, or several with commas.", ""), inQuery("job_id", "A job's id.", ""),
			), answers: ok(deliveryList{}),
		},
		"POST /webhooks/deliveries/{id}/redeliver": {
			id: "redeliver", tag: webhooks, summary: "Has a webhook's message sent again.", answers: ok(deliveryBody{}), errors: []int{http.StatusConflict},
		},
		"GET /audit": {
			id: "listAudit", tag: system, summary: "Lists who did what to which object, and what became of it, oldest first.", query: []parameter{
				inQuery("after", "next_after of the page before.", 0), inQuery("limit", "At most so many, 1 to 1,000, which is the default.", 0),
				inQuery("since", "From this time on.", time.Time{}), inQuery("until", "Before this time.", time.Time{}),
				inQuery("principal", "An API token's name, or a login's client_id.", ""), inQuery("action", "An action such as run.submit, or all that begin alike: run.", ""),
				inQuery("object", "The id or name of what was acted on.", ""),
			}, answers: ok(auditList{}), errors: []int{http.StatusServiceUnavailable},
		},
		"GET /health": {id: "health", tag: system, summary: "Tells how the server's parts are.", answers: ok(healthBody{})},
		"GET /livez":  {id: "livez", tag: system, summary: "Answers as long as the server does.", answers: ok(probeBody{})},
		"GET /readyz": {
			id: "readyz", tag: system, summary: "Tells whether the server takes runs.",
			answers: map[int]answerOf{http.StatusOK: {body: probeBody{}}, http.StatusServiceUnavailable: {body: probeBody{}}},
		},
		"GET /openapi.json": {}, "GET /openapi.yaml": {}, "GET /swagger/doc.json": {}, "GET /docs": {}, "GET /docs/{file}": {},

		"GET /metrics": {
			id: "metrics", tag: system, summary: "Gives what is measured, of all tenants together, as Prometheus reads it.",
			answers: map[int]answerOf{http.StatusOK: {as: "text/plain"}}, errors: []int{http.StatusNotFound},
		},
		"GET /version":       {id: "version", tag: system, summary: "Describes the build.", answers: ok(Version{})},
		"GET /claude/status": {id: "claudeStatus", tag: system, summary: "Tells of the credential for the model, never its value.", answers: ok(ClaudeStatus{})},
	}
}

// lines stands for a body of lines of JSON.
type lines struct{}
