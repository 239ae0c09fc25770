package podman

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// eventLine is one line of the stream.
type eventLine struct {
	Action   string
	Type     string
	TimeNano int64 `json:"timeNano"`
	Actor    struct {
		ID         string
		Attributes map[string]string
	}
}

// Events implements engine.Engine.
func (c *Client) Events(ctx context.Context, filter engine.EventFilter) iter.Seq2[engine.Event, error] {
	const op = "follow the container engine's events"
	since := filter.Since
	if since.IsZero() {
		since = time.Now()
	}
	// libpod takes whole seconds; what is too early is left out below.
	query := url.Values{
		"stream": {"true"}, "since": {strconv.FormatInt(since.Unix(), 10)}, "filters": {eventFilters(filter.Labels)},
	}
	return func(yield func(engine.Event, error) bool) {
		resp, err := c.do(ctx, request{op: op, method: http.MethodGet, path: "/events", query: query})
		if err != nil {
			yield(engine.Event{}, err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		lines := json.NewDecoder(resp.Body)
		for {
			var line eventLine
			if err := lines.Decode(&line); err != nil {
				yield(engine.Event{}, transportError(ctx, op, err))
				return
			}
			event := line.event()
			// Podman takes several labels for alternatives.
			if line.Type != "container" || event.Time.Before(since) || !engine.HasLabels(event.Labels, filter.Labels) {
				continue
			}
			if !yield(event, nil) {
				return
			}
		}
	}
}

func eventFilters(labels map[string]string) string {
	return strings.Replace(labelFilter(labels), "{", `{"type":["container"],`, 1)
}

func (l eventLine) event() engine.Event {
	e := engine.Event{Time: time.Unix(0, l.TimeNano), Action: l.Action, ID: l.Actor.ID, Labels: map[string]string{}}
	for k, v := range l.Actor.Attributes {
		switch k {
		case "name":
			e.Name = v
		case "image":
			e.Image = v
		case "podId":
		case "containerExitCode":
			// Podman 4.3 has it, as 0, on every event.
			if l.Action == "died" {
				e.ExitCode, _ = strconv.Atoi(v)
			}
		default:
			e.Labels[k] = v
		}
	}
	return e
}
