package claude

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// result is what counts of a result line.
type result struct {
	subtype  string
	failed   bool
	terminal string // terminal_reason
	status   int    // HTTP status of a failed request to the model; 0: none
	text     string // result
	errors   []string
	queued   int // turns that wait
}

// The subtypes and reasons that mean more than "failed".
const (
	subSuccess   = "success"
	subMaxTurns  = "error_max_turns"
	subBudget    = "error_max_budget_usd"
	subSchema    = "error_max_structured_output_retries"
	subExecution = "error_during_execution"
)

func (r result) aborted() bool { return strings.HasPrefix(r.terminal, "aborted_") }

func readResult(o object) result {
	_, sub := o.kind()
	return result{
		subtype:  sub,
		failed:   get[bool](o, "is_error"),
		terminal: get[string](o, "terminal_reason"),
		status:   get[int](o, "api_error_status"),
		text:     get[string](o, "result"),
		errors:   get[[]string](o, "errors"),
		queued:   get[int](o, "queued_turn_count"),
	}
}

func (t *Turn) onResult(o object, line []byte, cut bool) []stromboli.Event {
	t.results++
	t.busy, t.awaiting, t.cutOff = false, false, false
	t.setSession(o)
	t.last = readResult(o)
	t.usage.addResult(o)
	if s := o["structured_output"]; len(s) > 0 && string(s) != "null" {
		t.structured = bytes.Clone(s)
	}
	t.lastRaw = nil
	if t.format == stromboli.OutputJSON || t.printed.dropped > 0 {
		t.lastRaw = bytes.Clone(line)
	}

	var events []stromboli.Event
	text := t.last.printedText()
	switch {
	case t.resumed && !t.last.failed:
		text = t.answer.joined()
		events = t.warn(WarnAnswerResumed, "the model's answer was cut and went on in another message; the output joins its parts")
	case t.last.aborted() && !t.answer.empty():
		// "Execution error" says less than what the agent had said.
		text = t.answer.joined()
	}
	t.texts.add(text)
	t.answer.reset()
	t.resumed = false
	t.undone = 0
	if cut || t.texts.cut || t.printed.dropped > 0 {
		events = append(events, t.warn(WarnOutputCut, "the output is longer than what is kept; all of its lines, as far as they were kept, are in the run's events")...)
	}
	return events
}

// printedText is what the CLI prints for a result with --output-format=text,
// without the newline at its end.
func (r result) printedText() string {
	switch r.subtype {
	case subSuccess:
		return r.text
	case subMaxTurns:
		if n, ok := between(r.errors, "Reached maximum number of turns (", ")"); ok {
			return "Error: Reached max turns (" + n + ")"
		}
	case subBudget:
		if n, ok := between(r.errors, "Reached maximum budget ($", ")"); ok {
			return "Error: Exceeded USD budget (" + n + ")"
		}
	case subExecution:
		if r.aborted() || len(r.errors) == 0 {
			return "Execution error"
		}
	}
	if len(r.errors) > 0 {
		return "Error: " + strings.Join(r.errors, "\n")
	}
	return r.text
}

func between(list []string, before, after string) (string, bool) {
	if len(list) == 0 {
		return "", false
	}
	s, ok := strings.CutPrefix(list[0], before)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(s, after)
}

// judge turns a result into the run's status, reason and error.
func (t *Turn) judge(out *stromboli.Outcome) {
	r := t.last
	switch {
	case !r.failed && r.subtype == subSuccess && t.schema && t.structured == nil:
		fail(out, stromboli.ReasonSchema, "the agent ended without the structured output that json_schema asks for")
	case !r.failed && r.subtype == subSuccess:
		out.Status = stromboli.Completed
	default:
		fail(out, t.reason(), firstBytes(r.message(), maxError))
	}
}

func fail(out *stromboli.Outcome, reason stromboli.Reason, text string) {
	out.Status, out.Reason, out.Error = stromboli.Failed, reason, text
}

// message is a failed result's own explanation.
func (r result) message() string {
	switch {
	case r.aborted():
		return "the turn was interrupted"
	case strings.TrimSpace(r.text) != "":
		return r.text
	case len(r.errors) > 0:
		return strings.Join(r.errors, "\n")
	case r.subtype != "":
		return "the agent ended with " + r.subtype
	}
	return "the agent ended with an error"
}

func (t *Turn) reason() stromboli.Reason {
	r := t.last
	switch r.subtype {
	case subMaxTurns:
		return stromboli.ReasonMaxTurns
	case subBudget:
		return stromboli.ReasonBudget
	case subSchema:
		return stromboli.ReasonSchema
	}
	switch r.status {
	case 401, 403:
		return stromboli.ReasonAuth
	case 429, 529:
		return stromboli.ReasonOverloaded
	case 0:
		if t.lastError == "authentication_failed" {
			return stromboli.ReasonAuth
		}
		if diskFull(r.text) || diskFull(strings.Join(r.errors, "\n")) {
			return stromboli.ReasonDisk
		}
	}
	return stromboli.ReasonModel
}

func diskFull(s string) bool {
	return strings.Contains(s, "ENOSPC") || strings.Contains(strings.ToLower(s), "no space left on device")
}

// compact is a structured output as one line; it is valid JSON already.
func compact(raw json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return nil
	}
	return b.Bytes()
}
