package tracing_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

// TestDeadCollector: one that is not there, and one that takes everything and
// never answers, cost requests and runs nothing, and a stop no more than the time
// for last words. All together the queues hold a bounded number, and the log is
// not flooded.
func TestDeadCollector(t *testing.T) {
	t.Parallel()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	silent := tracingtest.Start(t)
	silent.Silence()
	for name, endpoint := range map[string]string{
		"closed, grpc": closed, "closed, http": "http://" + closed, "silent, grpc": silent.GRPC, "silent, http": silent.HTTP,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := start(t, endpoint, stored{"run-1": whole(callerParent)})
			const n = 4_000 // more than all queues hold
			began := time.Now()
			for range n {
				_, end := tr.Request(request(callerParent, ""))
				tr.Ended("run-1")
				end("POST /run", 200)
			}
			each := time.Since(began) / n
			t.Logf("%s for a request and its run", each)
			if each > 5*time.Millisecond { // waiting for each 5 s that an attempt takes would be more
				t.Errorf("a request and its run took %s", each)
			}
			if took := tr.stop(); took > 10*time.Second { // 2 s on a machine that has time
				t.Errorf("the stop took %s", took)
			} else {
				t.Logf("stopped after %s", took)
			}
			log := tr.log.String()
			if !strings.Contains(log, "traces of runs were dropped") {
				t.Errorf("nobody says that traces were dropped:\n%s", log)
			}
			if lines := strings.Count(log, "level=WARN"); lines > 10 {
				t.Errorf("%d warnings", lines)
			}
		})
	}
}

// TestCollectorComesBack: what is made once it answers again arrives.
func TestCollectorComesBack(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	tr := start(t, c.HTTP, stored{"run-1": whole(callerParent)})
	c.Silence()
	tr.Ended("run-1")
	deadline := time.Now().Add(30 * time.Second)
	for !strings.Contains(tr.log.String(), "the collector takes no traces") {
		if time.Now().After(deadline) {
			t.Fatal("nobody says that the collector takes no traces")
		}
		c.Release()
		c.Silence()
		<-time.After(20 * time.Millisecond)
	}
	c.Release()
	tr.Ended("run-1")
	c.Wait(callerTrace, "the run's spans", func(s []tracingtest.Span) bool { return len(s) > 0 })
	tr.stop()
	if !strings.Contains(tr.log.String(), "the collector takes traces again") {
		t.Error("nobody says that it does again")
	}
}
