package tracing_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/tracing"
	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

func request(parent, state string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/run", http.NoBody)
	if parent != "" {
		r.Header.Set("Traceparent", parent)
	}
	if state != "" {
		r.Header.Set("Tracestate", state)
	}
	return r
}

func TestRequest(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	tr := start(t, c.HTTP, nil)
	for _, tt := range []struct {
		name, parent, state, wantState string
		joined                         bool
	}{
		{name: "none"},
		{name: "joined", parent: callerParent, state: "vendor=1", wantState: "vendor=1", joined: true},
		{name: "of a later version", parent: "01" + callerParent[2:] + "-more", joined: true},
		{name: "state too long", parent: callerParent, state: "v=" + strings.Repeat("x", 600), joined: true},
		{name: "state of too many", parent: callerParent, state: strings.TrimSuffix(strings.Repeat("k=1,", 40), ","), joined: true},
		{name: "garbage", parent: "00-xyz"},
		{name: "zero trace", parent: "00-00000000000000000000000000000000-b7ad6b7169203331-01"},
		{name: "zero span", parent: "00-" + callerTrace + "-0000000000000000-01"},
		{name: "upper case", parent: strings.ToUpper(callerParent)},
		{name: "endless", parent: callerParent + strings.Repeat("-", 300)},
	} {
		ctx, end := tr.Request(request(tt.parent, tt.state))
		at := tr.Context(ctx)
		if joined := strings.Contains(at.Parent, callerTrace); joined != tt.joined || at.State != tt.wantState || len(at.Parent) != 55 {
			t.Errorf("%s: %+v", tt.name, at)
		}
		end("POST /run", http.StatusOK)
	}
	twice := request(callerParent, "")
	twice.Header.Add("Traceparent", callerParent)
	ctx, end := tr.Request(twice)
	if strings.Contains(tr.Context(ctx).Parent, callerTrace) {
		t.Error("one of two parents was joined")
	}
	end("", http.StatusInternalServerError)
	_, end = tr.Request(httptest.NewRequest("canary", "/?"+canary, http.NoBody))
	end("", http.StatusNotFound)
	tr.stop()
	if n := len(c.Spans("")); n != 12 {
		t.Errorf("%d spans, want 12", n)
	}
	failed := byName(t, c.Spans(""), "HTTP POST")
	if failed.Attrs["http.response.status_code"] != int64(500) || failed.GetStatus().GetCode() == 0 {
		t.Errorf("%v %v", failed.Attrs, failed.GetStatus())
	}
	byName(t, c.Spans(""), "HTTP _OTHER")
	if c.Holds("canary") {
		t.Error("what callers choose became a name")
	}
}

// What STROMBOLI_TRACING_ENDPOINT, _PROTOCOL and STROMBOLI_TRACING_INSECURE mean
// together.
func TestParseEndpoint(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text, protocol string
		insecure       bool
		want           tracing.Endpoint
		wrong          string
	}{
		{text: "localhost:4317", want: tracing.Endpoint{Protocol: tracing.GRPC, Address: "localhost:4317", Plain: true}},
		{text: "otel.lan:4317", want: tracing.Endpoint{Protocol: tracing.GRPC, Address: "otel.lan:4317"}},
		{text: "otel.lan:4317", insecure: true, want: tracing.Endpoint{Protocol: tracing.GRPC, Address: "otel.lan:4317", Plain: true}},
		{text: "otel.lan:4318", protocol: "http", want: tracing.Endpoint{Protocol: tracing.HTTP, Address: "otel.lan:4318", Path: "/v1/traces"}},
		{text: "http://otel.lan:4318", want: tracing.Endpoint{Protocol: tracing.HTTP, Address: "otel.lan:4318", Path: "/v1/traces", Plain: true}},
		{text: "https://otel.lan/base/", want: tracing.Endpoint{Protocol: tracing.HTTP, Address: "otel.lan:443", Path: "/base/v1/traces"}},
		{text: "https://otel.lan/v1/traces", want: tracing.Endpoint{Protocol: tracing.HTTP, Address: "otel.lan:443", Path: "/v1/traces"}},
		{text: "https://[::1]:4317", protocol: "grpc", want: tracing.Endpoint{Protocol: tracing.GRPC, Address: "[::1]:4317"}},
		{text: "[::1]:4317", want: tracing.Endpoint{Protocol: tracing.GRPC, Address: "[::1]:4317", Plain: true}},
		{text: "", wrong: "neither host:port"},
		{text: "otel.lan", wrong: "neither host:port"},
		{text: ":4317", wrong: "neither host:port"},
		{text: "ftp://otel.lan", wrong: "scheme"},
		{text: "https://user:hidden@otel.lan", wrong: "no place"},
		{text: "https://otel.lan", insecure: true, wrong: "one of them is wrong"},
		{text: "http://otel.lan/base", protocol: "grpc", wrong: "no path"},
		{text: "otel.lan:4317", protocol: "udp", wrong: "neither grpc nor http"},
	} {
		got, err := tracing.ParseEndpoint(tt.text, tt.protocol, tt.insecure)
		switch {
		case tt.wrong != "":
			if err == nil || !strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("%q: %v, want %q", tt.text, err, tt.wrong)
			}
		case err != nil || got != tt.want:
			t.Errorf("%q %q: %+v, %v; want %+v", tt.text, tt.protocol, got, err, tt.want)
		}
	}
}
