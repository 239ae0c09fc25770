package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Message is one event of a run's stream.
type Message struct {
	RunID string
	// Type is empty for a line of output; text and superseded when partial
	// messages were asked for; done or error for the last one.
	Type string
	// Data is the line, the run's error, or JSON.
	Data string
}

// Stream starts a run and yields its stream, each message once, across cut
// connections and restarts of the server. The last message is done or error;
// afterwards Job tells everything about the run. Breaking off the loop leaves
// the run alone, unless it asked for on_disconnect: cancel.
func (c *Client) Stream(ctx context.Context, spec stromboli.RunSpec, opts ...Option) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		k, err := submission("/run/stream", spec, opts)
		if err != nil {
			yield(Message{}, err)
			return
		}
		c.follow(ctx, k, func(m message) (bool, error) {
			id, _, _ := strings.Cut(m.id, "/")
			last := m.event == "done" || m.event == "error"
			return yield(Message{RunID: id, Type: m.event, Data: m.data}, nil) && !last, nil
		}, func(err error) { yield(Message{}, err) })
	}
}

// Events yields a run's events after a position, each once, until
// run.finished, across cut connections and restarts of the server.
func (c *Client) Events(ctx context.Context, id string, after int64) iter.Seq2[stromboli.Event, error] {
	return func(yield func(stromboli.Event, error) bool) {
		k := call{method: http.MethodGet, path: "/jobs/" + url.PathEscape(id) + "/stream", lastID: strconv.FormatInt(after, 10)}
		c.follow(ctx, k, func(m message) (bool, error) {
			var ev stromboli.Event
			if err := json.Unmarshal([]byte(m.data), &ev); err != nil {
				return false, fmt.Errorf("an event of %s is malformed: %w", id, err)
			}
			return yield(ev, nil) && ev.Type != stromboli.EventRunFinished, nil
		}, func(err error) { yield(stromboli.Event{}, err) })
	}
}

// follow repeats a stream's request until each says that there is no more. It
// calls fail at most once, as the last thing.
func (c *Client) follow(ctx context.Context, k call, each func(message) (more bool, err error), fail func(error)) {
	k.accept = "text/event-stream"
	retry := backoff{patience: c.patience}
	for {
		pause, over, err := c.streamOnce(ctx, &k, &retry, each)
		if over {
			if err != nil {
				fail(err)
			}
			return
		}
		if err := retry.wait(ctx, err, pause); err != nil {
			fail(err)
			return
		}
	}
}

// streamOnce reads one connection's messages. It moves k's position on, so
// that k means the rest. It is over at the last message, when the caller has
// enough, or at an error that repeating can't heal.
func (c *Client) streamOnce(parent context.Context, k *call, retry *backoff, each func(message) (bool, error)) (pause time.Duration, over bool, err error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	// One timer for both silences: before the headers, and between bytes.
	watchdog := time.AfterFunc(headerTimeout, cancel)
	defer watchdog.Stop()
	req, err := c.request(ctx, *k)
	if err != nil {
		return 0, true, err
	}
	resp, err := c.hc.Do(req)
	if err != nil {
		return 0, parent.Err() != nil, err
	}
	defer func() { _ = resp.Body.Close() }() // nothing is lost by it
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return 0, true, nil
	case resp.StatusCode != http.StatusOK:
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return 0, parent.Err() != nil, err
		}
		refused := errorOf(resp, body)
		return refused.RetryAfter, !passing(refused), refused
	}
	p := newParser(&watched{resp.Body, watchdog})
	p.lastID = k.lastID
	for {
		m, err := p.next()
		k.lastID = p.lastID
		if err != nil {
			if parent.Err() != nil {
				return 0, true, parent.Err()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // the last message was not among them
			}
			return p.retry, errors.Is(err, errEventTooLarge), fmt.Errorf("%s %s: %w", k.method, k.path, err)
		}
		retry.reset()
		// A caller that takes its time is no silence of the server's.
		watchdog.Stop()
		more, err := each(m)
		if !more || err != nil {
			return 0, true, err
		}
	}
}

// watched puts the watchdog off at every read that waits.
type watched struct {
	io.Reader
	dog *time.Timer
}

func (w *watched) Read(b []byte) (int, error) {
	w.dog.Reset(silence)
	return w.Reader.Read(b)
}
