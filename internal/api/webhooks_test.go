package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func TestDeliveries(t *testing.T) {
	s := start(t)
	at := time.UnixMilli(1_700_000_000_000)
	run := stromboli.NewRunID(at)
	add := func(tenant, id string, status stromboli.DeliveryStatus) {
		s.fake.Box.Add(stromboli.Delivery{ID: id, Tenant: tenant, RunID: run, Host: "a.example:443", Status: status, Attempts: 2, LastStatus: 500, LastError: "e", NextAt: at, CreatedAt: at, UpdatedAt: at})
	}
	add("default", "msg-1", stromboli.DeliveryDead)
	add("default", "msg-2", stromboli.DeliverySending)
	add("default", "msg-3", stromboli.DeliveryPending)
	add("other", "msg-4", stromboli.DeliveryDead)

	const times = `"next_attempt_at":"2023-11-14T22:13:20Z","created_at":"2023-11-14T22:13:20Z","updated_at":"2023-11-14T22:13:20Z"}`
	one := func(id, status string) string {
		return `{"id":"` + id + `","job_id":"` + stromboli.JobID(run) + `","host":"a.example:443","status":"` + status + `","attempts":2,"last_status":500,"last_error":"e",` + times
	}
	for path, want := range map[string]string{
		"":                               `{"deliveries":[` + one("msg-3", "pending") + `,` + one("msg-2", "sending") + `,` + one("msg-1", "dead") + `],"has_more":false}`,
		"?status=dead":                   `{"deliveries":[` + one("msg-1", "dead") + `],"has_more":false}`,
		"?status=dead,delivered&status=": `{"deliveries":[` + one("msg-1", "dead") + `],"has_more":false}`,
		"?limit=1":                       `{"deliveries":[` + one("msg-3", "pending") + `],"next_cursor":"1","has_more":true}`,
		"?limit=1&cursor=2":              `{"deliveries":[` + one("msg-1", "dead") + `],"has_more":false}`,
		"?status=delivered":              `{"deliveries":[],"has_more":false}`,
		"?status=dead&job_id=" + run:     `{"deliveries":[` + one("msg-1", "dead") + `],"has_more":false}`,
		"?job_id=" + stromboli.NewRunID(at.Add(1e6)): `{"deliveries":[],"has_more":false}`,
	} {
		if a := s.ask("GET", "/webhooks/deliveries"+path, ""); a.status != http.StatusOK || a.raw != want {
			t.Errorf("%s: %d %s\nwant %s", path, a.status, a.raw, want)
		}
	}
	for path, field := range map[string]string{
		"?status=running": "status", "?limit=0": "limit", "?limit=1001": "limit", "?cursor=x": "cursor", "?job_id=x": "job_id", "?tenant=other": "tenant", "?limit=1&limit=2": "limit",
	} {
		if a := s.ask("GET", "/webhooks/deliveries"+path, ""); a.status != http.StatusBadRequest || !strings.Contains(a.raw, `"field":"`+field+`"`) {
			t.Errorf("%s: %d %s", path, a.status, a.raw)
		}
	}
	for _, tt := range []struct {
		id, body string
		status   int
		holds    string
	}{
		{"msg-1", "", 200, one("msg-1", "pending")},
		{"msg-1", "{}", 200, one("msg-1", "pending")},
		{"msg-2", "", 409, `"code":"conflict"`},
		{"msg-4", "", 404, `"code":"not_found"`},
		{"msg-0", "", 404, `"code":"not_found"`},
		{"msg-1", `{"url":"http://elsewhere/"}`, 400, `"field":"url"`},
	} {
		var headers []string
		if tt.body != "" {
			headers = []string{"Content-Type: application/json"}
		}
		if a := s.ask("POST", "/webhooks/deliveries/"+tt.id+"/redeliver", tt.body, headers...); a.status != tt.status || !strings.Contains(a.raw, tt.holds) {
			t.Errorf("%s %s: %d %s", tt.id, tt.body, a.status, a.raw)
		}
	}
	if a := s.ask("POST", "/webhooks/deliveries/msg-1/redeliver", "", "Origin: http://evil.example"); a.status != http.StatusForbidden {
		t.Errorf("from a foreign page: %d %s", a.status, a.raw)
	}
}
