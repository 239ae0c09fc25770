// Package tracing makes traces of requests and runs and sends them to a
// collector by OTLP.
//
// A request's span is made while it is answered. A run's spans are made of its
// stored events once it has ended, by whatever server it ended under: what a
// server's death interrupts has no gap in its trace. Their ids follow from the
// run's, so that what is known only to another server, or to the agent's CLI, can
// name them.
//
// It promises that nobody waits for it: whoever tells it something returns at
// once, and what doesn't fit into its queues is dropped, counted and logged. It
// never sends what was said: prompts, answers, and what tools are given and give.
package tracing

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tomblancdev/stromboli"
)

const (
	// maxRuns is how many ended runs may wait for their spans to be made.
	maxRuns = 1024
	// maxWaiting is how many spans of requests may wait to be sent.
	maxWaiting = 2048
	// sendTime bounds one attempt to hand spans to the collector.
	sendTime = 5 * time.Second
	// lastWords bounds what is still sent at the end.
	lastWords = 2 * time.Second
	// tellEvery is how often the log is told at most of what was dropped.
	tellEvery = time.Minute
	// batchEvery is how long the span of a request waits at most to be sent.
	batchEvery = time.Second
)

// Events is what tracing needs of the event log.
type Events interface {
	// Events returns up to limit stored events after a position, in order; none
	// where there are no more.
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
}

// Config is what a Tracer needs.
type Config struct {
	Endpoint    Endpoint
	ServiceName string
	Version     string // of the build
	// SampleRatio is the share of the traces that begin here which are recorded;
	// a caller's trace is recorded if the caller does.
	SampleRatio float64
	// Agents: the agents' CLIs take part, with spans of their own.
	Agents bool
	Events Events
	Log    *slog.Logger
}

// Tracer makes traces. A nil *Tracer makes none.
type Tracer struct {
	cfg   Config
	log   *slog.Logger
	out   *exporter
	live  *sdk.TracerProvider
	trace trace.Tracer

	tasks   chan task
	dropped atomic.Int64 // tasks, since the last word about them
	told    time.Time    // when that was; Run's own
}

// task is one thing to send: the spans of a run that has ended, or what its
// agent's CLI has exported.
type task struct {
	runID   string
	exports [][]byte
}

// New returns a Tracer; nothing is sent before Run.
func New(cfg Config) (*Tracer, error) {
	out, err := newExporter(cfg)
	if err != nil {
		return nil, err
	}
	t := &Tracer{cfg: cfg, log: cfg.Log, out: out, tasks: make(chan task, maxRuns)}
	t.live = sdk.NewTracerProvider(
		sdk.WithResource(out.resource),
		sdk.WithRawSpanLimits(spanLimits()),
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.SampleRatio))),
		sdk.WithBatcher(out, sdk.WithMaxQueueSize(maxWaiting), sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(sendTime)),
	)
	t.trace = t.live.Tracer(scope)
	return t, nil
}

// spanLimits are the same whatever the environment says.
func spanLimits() sdk.SpanLimits {
	return sdk.SpanLimits{
		AttributeValueLengthLimit: 512, AttributeCountLimit: 64, EventCountLimit: 16, LinkCountLimit: 16,
		AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 16,
	}
}

// Ended has the spans of a run made that has ended. It never waits.
func (t *Tracer) Ended(runID string) { t.add(task{runID: runID}) }

// Exported takes what the CLI of a run's agent has exported: bodies of OTLP
// requests. It never waits.
func (t *Tracer) Exported(runID string, exports [][]byte) {
	if len(exports) > 0 {
		t.add(task{runID: runID, exports: exports})
	}
}

func (t *Tracer) add(k task) {
	select {
	case t.tasks <- k:
	default:
		t.dropped.Add(1)
	}
}

// Run sends traces until ctx ends, and then for at most three seconds what is left.
func (t *Tracer) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		last := time.NewTimer(lastWords)
		defer last.Stop()
		select {
		case <-last.C:
			cancel()
		case <-work.Done():
		}
	})()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case k := <-t.tasks:
			t.do(work, k)
		}
	}
	for left := true; left && work.Err() == nil; {
		select {
		case k := <-t.tasks:
			t.do(work, k)
		default:
			left = false
		}
	}
	t.dropped.Add(int64(len(t.tasks)))
	t.told = time.Time{}
	t.tell(work)
	// The SDK begins no end with a context that is over.
	end, done := context.WithTimeout(context.WithoutCancel(ctx), lastWords/2)
	defer done()
	err := errors.Join(t.live.Shutdown(end), t.out.stop(end))
	if work.Err() != nil || end.Err() != nil { // a dead collector is no fault of the server's
		return nil
	}
	return err
}

func (t *Tracer) do(ctx context.Context, k task) {
	t.tell(ctx)
	var err error
	if k.exports != nil {
		err = t.sendExports(ctx, k)
	} else {
		err = t.sendRun(ctx, k.runID)
	}
	if err != nil {
		t.log.DebugContext(ctx, "sending a run's trace", "run", k.runID, "error", err)
	}
}

// tell says now and then how many traces were lost since it was said last.
func (t *Tracer) tell(ctx context.Context) {
	if !t.told.IsZero() && time.Since(t.told) < tellEvery {
		return
	}
	t.told = time.Now()
	if n := t.dropped.Swap(0); n > 0 {
		t.log.WarnContext(ctx, "traces of runs were dropped: the collector is too slow", "dropped", n)
	}
}
