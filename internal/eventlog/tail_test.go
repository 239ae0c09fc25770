package eventlog

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/tomblancdev/stromboli"
)

// TestTailModel compares the tail with everything that was ever added.
func TestTailModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var tl tail
		next := rapid.Int64Range(1, 50).Draw(rt, "first")
		for range rapid.IntRange(1, 30).Draw(rt, "batches") {
			if rapid.IntRange(0, 9).Draw(rt, "gap") == 0 {
				next += 3
			}
			events := make([]stromboli.Event, rapid.IntRange(1, 400).Draw(rt, "size"))
			for i := range events {
				events[i].Seq = next
				next++
				if rapid.IntRange(0, 99).Draw(rt, "large") == 0 {
					events[i].Data = make([]byte, rapid.IntRange(0, tailBytes+10).Draw(rt, "bytes"))
				}
			}
			tl.add(events)
			sum := 0
			for i, ev := range tl.events {
				sum += len(ev.Data)
				if i > 0 && ev.Seq != tl.events[i-1].Seq+1 {
					rt.Fatalf("%d after %d", ev.Seq, tl.events[i-1].Seq)
				}
			}
			if len(tl.events) > tailEvents || sum > tailBytes || sum != tl.bytes {
				rt.Fatalf("%d events, %d bytes, counted %d", len(tl.events), sum, tl.bytes)
			}
			if n := len(tl.events); n > 0 && tl.events[n-1].Seq != next-1 {
				rt.Fatalf("the newest is %d, want %d", tl.events[n-1].Seq, next-1)
			}
			pos := rapid.Int64Range(0, next+5).Draw(rt, "position")
			got := tl.after(pos)
			if len(got) > 0 && got[0].Seq != pos+1 {
				rt.Fatalf("after %d comes %d", pos, got[0].Seq)
			}
			if n := len(tl.events); len(got) == 0 && n > 0 && pos+1 >= tl.events[0].Seq && pos < next-1 {
				rt.Fatalf("nothing after %d, though the tail has it", pos)
			}
		}
	})
}
