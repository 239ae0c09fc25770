package stromboli_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// TestWebhookPayload: the contract's fields, what is unset left out, and no
// output that makes a body too long for its receivers.
func TestWebhookPayload(t *testing.T) {
	t.Parallel()
	id := "run-01hf7yat00000000000000000a"
	body, err := stromboli.NewWebhookPayload(id, stromboli.Outcome{
		Status: stromboli.Failed, Reason: stromboli.ReasonTimeout, Error: "it took <too> long", SessionID: "s", Usage: &stromboli.Usage{InputTokens: 1},
	}).Body()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"job_id":"job-01hf7yat00000000000000000a","status":"failed","error":"it took <too> long","session_id":"s","usage":{` +
		`"input_tokens":1,"output_tokens":0,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"total_tokens":0,"estimated_cost_usd":0}}`
	if string(body) != want {
		t.Errorf("the body is %s", body)
	}
	for name, s := range map[string]string{
		"letters": strings.Repeat("x", 1<<20+9), "quotes": strings.Repeat(`"`, 1<<19+9), "zeros": strings.Repeat("\x00", 1<<18), "wide": strings.Repeat("日本", 1<<18),
		"broken": strings.Repeat("\xff", 1<<18), "separators": strings.Repeat("\u2028", 1<<18), "lines": strings.Repeat("<a>\n", 1<<18),
	} {
		p := stromboli.NewWebhookPayload(id, stromboli.Outcome{Status: stromboli.Completed, Output: s, Error: s})
		body, err := p.Body()
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > stromboli.MaxWebhookOutput+64<<10+200 || len(body) < stromboli.MaxWebhookOutput-10 {
			t.Errorf("%s: the body has %d bytes", name, len(body))
		}
		if !p.OutputCut || p.OutputBytes != len(s) || !strings.HasPrefix(s, p.Output) || utf8.ValidString(s) && !utf8.ValidString(p.Output) {
			t.Errorf("%s: cut %v of %d, kept %d", name, p.OutputCut, p.OutputBytes, len(p.Output))
		}
		var back stromboli.WebhookPayload
		if err := json.Unmarshal(body, &back); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p := stromboli.NewWebhookPayload(id, stromboli.Outcome{Output: strings.Repeat("x", stromboli.MaxWebhookOutput)}); p.OutputCut {
		t.Error("an output that fits is cut")
	}
}
