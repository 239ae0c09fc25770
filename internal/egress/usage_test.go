package egress

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tomblancdev/stromboli"
)

const streamed = `event: message_start
data: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":10,"cache_creation_input_tokens":3,"cache_read_input_tokens":4,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"\"usage\":{\"input_tokens\":999}"}}

event: message_delta
data: {"type":"message_delta","usage":{"output_tokens":25}}

event: message_stop
data: {"type":"message_stop"}

`

func TestMeter(t *testing.T) {
	t.Parallel()
	want := stromboli.Usage{Model: "claude-x", InputTokens: 10, OutputTokens: 25, CacheCreationInputTokens: 3, CacheReadInputTokens: 4, TotalTokens: 42}
	for name, c := range map[string]struct {
		kind, text string
		want       *stromboli.Usage
	}{
		"stream":        {"text/event-stream; charset=utf-8", streamed, &want},
		"CR LF":         {"text/event-stream", strings.ReplaceAll(streamed, "\n", "\r\n"), &want},
		"cut":           {"text/event-stream", streamed[:strings.Index(streamed, "event: message_delta")], &stromboli.Usage{Model: "claude-x", InputTokens: 10, OutputTokens: 1, CacheCreationInputTokens: 3, CacheReadInputTokens: 4, TotalTokens: 18}},
		"a huge line":   {"text/event-stream", "data: " + strings.Repeat("x", 2<<20) + "\n\n" + streamed, &want},
		"whole":         {"application/json", `{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":10,"cache_creation_input_tokens":3,"cache_read_input_tokens":4,"output_tokens":25}}`, &want},
		"a huge answer": {"application/json", `{"type":"message","x":"` + strings.Repeat("x", 2<<20) + `"}`, nil},
		"garbage":       {"text/event-stream", "data: {\"usage\":\x00\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":-5}}\n", &stromboli.Usage{}},
		"nothing":       {"text/event-stream", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader, func(r io.Reader) io.Reader { return r }} {
				var got *stromboli.Usage
				r := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {c.kind}}, Body: io.NopCloser(wrap(strings.NewReader(c.text)))}
				measure(r, func(u *stromboli.Usage) { got = u })
				passed, err := io.ReadAll(r.Body)
				if err != nil || string(passed) != c.text {
					t.Fatalf("%d bytes passed of %d, %v", len(passed), len(c.text), err)
				}
				if (got == nil) != (c.want == nil) || (got != nil && *got != *c.want) {
					t.Errorf("%+v, want %+v", got, c.want)
				}
			}
		})
	}
}

// FuzzMeter: whatever a model answers passes as it is.
func FuzzMeter(f *testing.F) {
	f.Add([]byte(streamed))
	f.Add([]byte("data: {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(bytes.NewReader(text))}
		measure(r, func(u *stromboli.Usage) {
			if u != nil && (u.InputTokens < 0 || u.OutputTokens < 0) {
				t.Errorf("%+v", u)
			}
		})
		if passed, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(passed, text) {
			t.Fatalf("%q became %q, %v", text, passed, err)
		}
	})
}
