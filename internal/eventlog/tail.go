package eventlog

import (
	"slices"

	"github.com/tomblancdev/stromboli"
)

// tail is the newest events of a run, without gaps.
type tail struct {
	events []stromboli.Event
	bytes  int
}

func (t *tail) add(events []stromboli.Event) {
	if n := len(t.events); n > 0 && t.events[n-1].Seq+1 != events[0].Seq {
		t.events, t.bytes = nil, 0
	}
	t.events = append(t.events, events...)
	for _, ev := range events {
		t.bytes += len(ev.Data)
	}
	drop := 0
	for drop < len(t.events) && (len(t.events)-drop > tailEvents || t.bytes > tailBytes) {
		t.bytes -= len(t.events[drop].Data)
		drop++
	}
	t.events = slices.Delete(t.events, 0, drop)
}

// after copies events after a position; none where the tail begins later.
func (t *tail) after(pos int64) []stromboli.Event {
	if len(t.events) == 0 {
		return nil
	}
	skip := pos + 1 - t.events[0].Seq
	if skip < 0 || skip >= int64(len(t.events)) {
		return nil
	}
	rest := t.events[skip:]
	return slices.Clone(rest[:min(len(rest), copyEvents)])
}
