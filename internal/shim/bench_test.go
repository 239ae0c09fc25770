package shim

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// BenchmarkRoundTrip is the way of one frame to the agent's stdin and of its
// line back to the server.
func BenchmarkRoundTrip(b *testing.B) {
	s := benchServer(b, `while read -r line; do echo "$line"; done`)
	after := int64(0)
	for id := uint64(1); b.Loop(); id++ {
		go func() { _ = s.Stdin(context.Background(), id, []byte("hello\n")) }()
		for got := 0; got < 2; { // the record and the line
			lines, err := s.Next(b.Context(), after, 100)
			if err != nil {
				b.Fatal(err)
			}
			got += len(lines)
			after = lines[len(lines)-1].Seq
			s.Ack(after)
		}
	}
}

// BenchmarkLines is the throughput of many short lines.
func BenchmarkLines(b *testing.B) {
	s := benchServer(b, fmt.Sprintf(`yes '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"text":"word"}}}' | head -n %d`, 1<<30))
	after := int64(0)
	begin := time.Now()
	for n := 0; b.Loop(); {
		if n > 0 {
			n--
			continue
		}
		lines, err := s.Next(b.Context(), after, 1000)
		if err != nil {
			b.Fatal(err)
		}
		n = len(lines) - 1
		after = lines[len(lines)-1].Seq
		s.Ack(after)
	}
	b.ReportMetric(float64(after)/time.Since(begin).Seconds(), "lines/s")
}

func benchServer(b *testing.B, script string) *Peer {
	b.Helper()
	box := newBox(b, nil)
	s := box.serve(nil)
	must(b, s.Start(b.Context(), box.bash(script)))
	return s.Peer
}
