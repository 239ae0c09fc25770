package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/tomblancdev/stromboli"
)

const (
	// maxInline is a little below the contract's limit, so that an event fits
	// into one block of a stream with everything around its data.
	maxInline = stromboli.MaxInlineData - 4096
	// maxPageBytes bounds the data in one page of events, readPage what is read
	// at once: events may be large.
	maxPageBytes = 8 << 20
	readPage     = 64
)

type eventList struct {
	Events    []stromboli.Event `json:"events"`
	NextAfter int64             `json:"next_after"`
	HasMore   bool              `json:"has_more"`
}

// jobEvents answers a page of events: up to limit, fewer when they are large.
func (a *API) jobEvents(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	after, limit, err := pageOf(q)
	if err != nil {
		return err
	}
	run, err := a.job(r, p)
	if err != nil {
		return err
	}
	// A position beyond the newest event is nobody's yet: whoever polls from
	// there would miss what comes in between.
	list := eventList{Events: make([]stromboli.Event, 0), NextAfter: min(after, run.LastSeq)}
	for size := 0; len(list.Events) < limit && size < maxPageBytes; {
		batch, err := a.cfg.Events.Events(r.Context(), run.ID, list.NextAfter, min(readPage, limit-len(list.Events)))
		if err != nil {
			return fmt.Errorf("read the events of %s: %w", run.ID, err)
		}
		if len(batch) == 0 {
			break
		}
		for _, ev := range batch {
			ev = inline(ev)
			size += len(ev.Data)
			list.Events = append(list.Events, ev)
			list.NextAfter = max(list.NextAfter, resumeAt(ev))
		}
	}
	list.HasMore = len(list.Events) > 0 && list.NextAfter < run.LastSeq
	a.answer(w, r, http.StatusOK, list)
	return nil
}

// eventData answers one event's data, whole.
func (a *API) eventData(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	seq, ok := ordinal(r.PathValue("seq"))
	if !ok || seq == 0 {
		return stromboli.Errorf(stromboli.NotFound, "there is no event %q", clip(r.PathValue("seq")))
	}
	run, err := a.job(r, p)
	if err != nil {
		return err
	}
	data, err := a.cfg.Events.EventData(r.Context(), run.ID, seq)
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, data)
	return nil
}

// jobStream sends a run's events as they are. It ends after run.finished; a
// client that comes back there is told that nothing follows. Whoever watches
// here is a spectator: on_disconnect does not ask about it.
func (a *API) jobStream(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	if err := a.dropBody(w, r); err != nil {
		return err
	}
	after, err := jobPosition(r)
	if err != nil {
		return err
	}
	run, err := a.job(r, p)
	if err != nil {
		return err
	}
	if run.Status.Terminal() && after == run.LastSeq {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	out := a.startStream(w)
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	err = out.open("")
	if err == nil && after > run.LastSeq {
		// A position from nowhere: say what is missing and go on at the end.
		gone := stromboli.Event{Seq: run.LastSeq, RunID: run.ID, Type: stromboli.EventTruncated, At: run.UpdatedAt}
		if gone.Data, err = encode(stromboli.TruncatedData{From: run.LastSeq + 1, To: after}); err == nil {
			err = sendEvent(out, gone)
		}
		after = run.LastSeq
	}
	if err == nil && (!run.Status.Terminal() || after != run.LastSeq) {
		err = a.pump(r.Context(), out, run.ID, after, func(ev stromboli.Event) (bool, error) {
			return ev.Type == stromboli.EventRunFinished, sendEvent(out, ev)
		})
	}
	a.ended(r.Context(), run.ID, err)
	return nil
}

// jobPosition is the event after which to go on. An EventSource repeats its
// first URL, so that its header is newer than the parameter.
func jobPosition(r *http.Request) (int64, error) {
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		seq, ok := ordinal(last)
		if !ok || seq > 1<<53 {
			return 0, stromboli.FieldError("Last-Event-ID", "%q is not the position of an event", clip(last))
		}
		return seq, nil
	}
	q, err := query(r)
	if err != nil {
		return 0, err
	}
	return intParam(q, "after", 0, 1<<53, 0)
}

func sendEvent(out *sse, ev stromboli.Event) error {
	ev = inline(ev)
	b, err := encode(ev)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", ev.Seq, err)
	}
	id := strconv.FormatInt(resumeAt(ev), 10)
	return out.event(id, string(ev.Type), b, func() []byte {
		ev.Data = cutData(ev, len(ev.Data))
		b, err := encode(ev)
		if err != nil {
			return []byte("{}") // its parts were encoded above
		}
		return b
	})
}

// resumeAt is the position after an event. A truncated event stands for all
// the events that are gone.
func resumeAt(ev stromboli.Event) int64 {
	var gone stromboli.TruncatedData
	if ev.Type == stromboli.EventTruncated && ev.Seq == 0 && json.Unmarshal(ev.Data, &gone) == nil {
		return gone.To
	}
	return ev.Seq
}

// inline puts a reference in the place of data that is too large to send.
func inline(ev stromboli.Event) stromboli.Event {
	ev.At = ev.At.UTC()
	ev.Data = dataOf(ev)
	if len(ev.Data) > maxInline {
		ev.Data = cutData(ev, len(ev.Data))
	}
	return ev
}

func dataOf(ev stromboli.Event) []byte {
	if len(ev.Data) == 0 {
		return []byte("{}")
	}
	return ev.Data
}

func cutData(ev stromboli.Event, size int) []byte {
	b, err := encode(stromboli.CutData{
		Cut: true, Bytes: int64(size),
		Href: "/jobs/" + stromboli.JobID(ev.RunID) + "/events/" + strconv.FormatInt(ev.Seq, 10) + "/data",
	})
	if err != nil {
		return []byte("{}") // strings and numbers always encode
	}
	return b
}

// detach gives a write that must not be cut in two a context of its own.
func detach(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.Context()), submitTimeout)
}
