package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// scope names this package's spans.
const scope = "github.com/tomblancdev/stromboli"

// exporter hands spans to the collector. It says once in the log that the
// collector takes none, and once that it does again; to the SDK, whose only place
// for errors is global, it never says anything.
type exporter struct {
	client   otlptrace.Client
	spans    *otlptrace.Exporter
	resource *resource.Resource
	log      *slog.Logger

	life context.Context //nolint:containedctx // ends what is still being sent at the stop
	end  context.CancelFunc

	starting sync.Mutex // held while the client is started
	started  bool

	mu   sync.Mutex
	down bool
	lost int64
}

func newExporter(cfg Config) (*exporter, error) {
	var client otlptrace.Client
	e := cfg.Endpoint
	switch e.Protocol {
	case HTTP:
		opts := []otlptracehttp.Option{
			otlptracehttp.WithEndpoint(e.Address), otlptracehttp.WithURLPath(e.Path), otlptracehttp.WithTimeout(sendTime),
			otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: 500 * time.Millisecond, MaxInterval: time.Second, MaxElapsedTime: sendTime}),
			otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		}
		if e.Plain {
			opts = append(opts, otlptracehttp.WithInsecure())
		}
		client = otlptracehttp.NewClient(opts...)
	case GRPC:
		opts := []otlptracegrpc.Option{
			otlptracegrpc.WithEndpoint(e.Address), otlptracegrpc.WithTimeout(sendTime),
			otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: true, InitialInterval: 500 * time.Millisecond, MaxInterval: time.Second, MaxElapsedTime: sendTime}),
			otlptracegrpc.WithCompressor("gzip"),
		}
		if e.Plain {
			opts = append(opts, otlptracegrpc.WithInsecure())
		}
		client = otlptracegrpc.NewClient(opts...)
	default:
		return nil, fmt.Errorf("tracing: unknown protocol %q", e.Protocol)
	}
	life, end := context.WithCancel(context.Background())
	return &exporter{
		life: life, end: end,
		client: client, spans: otlptrace.NewUnstarted(client), log: cfg.Log,
		resource: resource.NewSchemaless(
			attribute.String("service.name", cfg.ServiceName), attribute.String("service.version", cfg.Version),
		),
	}, nil
}

// start makes the client ready; it connects when there is something to send.
func (x *exporter) start(ctx context.Context) error {
	x.starting.Lock()
	defer x.starting.Unlock()
	if x.started {
		return nil
	}
	if err := x.spans.Start(ctx); err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	x.started = true
	return nil
}

// ExportSpans implements sdk.SpanExporter.
func (x *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	_ = x.send(ctx, spans) // noted
	return nil
}

// send hands spans over, within sendTime.
func (x *exporter) send(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	return x.try(ctx, len(spans), func(ctx context.Context) error { return x.spans.ExportSpans(ctx, spans) })
}

// upload is send for spans that exist in the form of the protocol already.
func (x *exporter) upload(ctx context.Context, spans []*tracepb.ResourceSpans, n int) error {
	return x.try(ctx, n, func(ctx context.Context) error { return x.client.UploadTraces(ctx, spans) })
}

func (x *exporter) try(ctx context.Context, n int, send func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	defer context.AfterFunc(x.life, cancel)() //nolint:contextcheck // the end of either is the end
	err := x.start(ctx)
	if err == nil {
		err = send(ctx)
	}
	if x.life.Err() != nil {
		return err // nobody waits for it any more
	}
	x.note(ctx, n, err)
	return err
}

func (x *exporter) note(ctx context.Context, n int, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case err != nil:
		x.lost += int64(n)
		if !x.down {
			x.log.WarnContext(ctx, "the collector takes no traces; they are dropped until it does (STROMBOLI_TRACING_ENDPOINT)", "error", err)
		}
	case x.down:
		x.log.InfoContext(ctx, "the collector takes traces again", "lost_spans", x.lost)
		x.lost = 0
	}
	x.down = err != nil
}

// Shutdown implements sdk.SpanExporter; stop ends the connection, which runs'
// spans use too.
func (x *exporter) Shutdown(context.Context) error { return nil }

func (x *exporter) stop(ctx context.Context) error {
	x.end()
	x.starting.Lock()
	defer x.starting.Unlock()
	if !x.started {
		return nil
	}
	if err := x.spans.Shutdown(ctx); err != nil {
		return fmt.Errorf("tracing: closing the connection to the collector: %w", err)
	}
	return nil
}
