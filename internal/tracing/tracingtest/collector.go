// Package tracingtest is a collector of traces for tests: it takes OTLP by gRPC
// and by HTTP on loopback, and keeps what it was sent.
package tracingtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // what exporters compress with
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Collector keeps spans.
type Collector struct {
	coltracepb.UnimplementedTraceServiceServer
	tb testing.TB

	GRPC string // host:port
	HTTP string // URL

	mu     sync.Mutex
	spans  []Span
	raw    bytes.Buffer
	silent chan struct{} // set: requests wait for its end
}

// Span is one span with its attributes as text or numbers, and its resource's.
type Span struct {
	*tracepb.Span
	Trace, ID, Parent string // hexadecimal
	Attrs             map[string]any
	Resource          map[string]any
	Scope             string
}

// Start returns a collector that ends with the test.
func Start(tb testing.TB) *Collector {
	tb.Helper()
	c := &Collector{tb: tb}
	c.GRPC = c.serveGRPC()
	c.HTTP = c.serveHTTP()
	return c
}

func (c *Collector) listen() net.Listener {
	c.tb.Helper()
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		c.tb.Fatal(err)
	}
	return ln
}

func (c *Collector) serveGRPC() string {
	ln := c.listen()
	srv := grpc.NewServer()
	coltracepb.RegisterTraceServiceServer(srv, c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	c.tb.Cleanup(func() {
		c.Release()
		srv.Stop()
		<-done
	})
	return ln.Addr().String()
}

func (c *Collector) serveHTTP() string {
	ln := c.listen()
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(c.take)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	c.tb.Cleanup(func() {
		c.Release()
		_ = srv.Close()
		<-done
	})
	return "http://" + ln.Addr().String()
}

func (c *Collector) take(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var req coltracepb.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(b, &req) != nil {
		http.Error(w, "no export", http.StatusBadRequest)
		return
	}
	if _, err := c.Export(r.Context(), &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// Silence has the collector accept requests and never answer.
func (c *Collector) Silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = make(chan struct{})
}

// Release ends the silence; who waited gets an error.
func (c *Collector) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.silent != nil {
		close(c.silent)
		c.silent = nil
	}
}

// Export implements coltracepb.TraceServiceServer.
func (c *Collector) Export(ctx context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	if silent != nil {
		select {
		case <-silent:
		case <-ctx.Done():
		}
		return nil, status.Error(codes.InvalidArgument, "silence was broken")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	c.raw.Write(raw) // text is in it as it is
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, Span{
					Span: s, Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
					Attrs: values(s.GetAttributes()), Resource: values(rs.GetResource().GetAttributes()), Scope: ss.GetScope().GetName(),
				})
			}
		}
	}
	return &coltracepb.ExportTraceServiceResponse{}, nil
}

func values(list []*commonpb.KeyValue) map[string]any {
	all := map[string]any{}
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			all[kv.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			all[kv.GetKey()] = v.IntValue
		case *commonpb.AnyValue_DoubleValue:
			all[kv.GetKey()] = v.DoubleValue
		case *commonpb.AnyValue_BoolValue:
			all[kv.GetKey()] = v.BoolValue
		default:
			all[kv.GetKey()] = kv.GetValue().String()
		}
	}
	return all
}

// Spans are those of one trace, or all where trace is empty, as they came.
func (c *Collector) Spans(trace string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Span
	for _, s := range c.spans {
		if trace == "" || s.Trace == trace {
			out = append(out, s)
		}
	}
	return out
}

// Wait waits until the spans of a trace are what is wanted.
func (c *Collector) Wait(trace, what string, ok func([]Span) bool) []Span {
	c.tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		if all := c.Spans(trace); ok(all) {
			return all
		}
	}
	var names []string
	for _, s := range c.Spans(trace) {
		names = append(names, s.GetName())
	}
	c.tb.Fatalf("waited in vain for %s; there are %s", what, strings.Join(names, ", "))
	return nil
}

// Holds reports whether text is anywhere in what was sent.
func (c *Collector) Holds(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(c.raw.String(), text)
}
