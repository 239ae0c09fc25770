package claude

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// The streams of the CLI's process.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Warnings that a turn can give.
const (
	// WarnAnswerResumed: the model's answer was cut and went on in another
	// message; the output joins the parts.
	WarnAnswerResumed = "answer_resumed"
	// WarnOutputCut: the output was longer than what is kept.
	WarnOutputCut = "output_cut"
	// WarnUnclean: the agent ended badly after its result was complete.
	WarnUnclean = "unclean_exit"
)

// Turn follows one run's CLI from its first line to its last. It is fed every
// line in order and is not safe for concurrent use.
type Turn struct {
	format  stromboli.OutputFormat
	partial bool // deltas of the answer were asked for
	schema  bool // a structured output was
	all     bool // all lines, in the format json
	wished  wished

	sessionID string
	warnings  []stromboli.Warning

	// What is going on.
	busy     bool // something was said since the last result
	awaiting bool // a background task ended after it; its follow-up turn will come
	tasks    []stromboli.BackgroundTask
	cutOff   bool     // a task was stopped after the newest result: the CLI was told to end
	queued   []string // messages that the CLI has taken and not begun

	// What was said.
	results    int
	last       result
	lastRaw    []byte
	texts      boundedText // text of each result, as the CLI prints it
	structured json.RawMessage
	answer     boundedText // completed text blocks since the last tool result
	resumed    bool        // …the CLI asked the model to go on with a cut answer
	lastError  string      // kind of the newest API error
	undone     int         // bytes of text deltas whose block is not complete
	printed    lineBuffer
	stderr     tail
	usage      usage
}

// NewTurn starts a turn of a CLI that was started with these options.
func NewTurn(o stromboli.ClaudeOptions) *Turn {
	return &Turn{format: o.OutputFormat, partial: o.IncludePartialMessages, schema: o.JSONSchema != "", all: o.Verbose, wished: wishes(o)}
}

// Feed takes one line of the CLI, without its newline, and returns the events
// that it makes, numbered by Index: the line itself as an output event first.
// Only Type, Data and Index are set.
//
// A line may be the beginning of a longer one: a result whose end is missing
// still ends the turn, with as much of its text as there is.
func (t *Turn) Feed(stream string, line []byte) []stromboli.Event {
	line = bytes.ToValidUTF8(line, []byte("\uFFFD"))
	events := []stromboli.Event{event(stromboli.EventOutput, stromboli.OutputData{Stream: stream, Line: string(line)})}
	events = append(events, t.observe(stream, line)...)
	for i := range events {
		events[i].Index = i
	}
	return events
}

// Replay takes an event that Feed made before, so that a turn whose first
// lines were read by another process goes on here. Events other than output
// change nothing.
func (t *Turn) Replay(e stromboli.Event) {
	var d stromboli.OutputData
	if e.Type != stromboli.EventOutput || json.Unmarshal(e.Data, &d) != nil {
		return
	}
	t.observe(d.Stream, []byte(d.Line))
}

// Over reports whether the CLI has nothing left to do: its last word was a
// result, no background task runs or waits to be reported, and no message is
// queued. Its standard input can be closed then. Lines may still come
// afterwards, further results included: read to the end before Outcome.
func (t *Turn) Over() bool {
	return t.Answered() && len(t.tasks) == 0 && len(t.queued) == 0 && t.last.queued == 0 && !t.awaiting
}

// Answered reports whether the last word was a result. Answered and not Over
// means that the run waits for background tasks or for what follows their end;
// it may wait for ever.
func (t *Turn) Answered() bool { return t.results > 0 && !t.busy }

// BackgroundTasks lists the background tasks that run now.
func (t *Turn) BackgroundTasks() []stromboli.BackgroundTask {
	return append([]stromboli.BackgroundTask{}, t.tasks...)
}

// SessionID is the id under which the CLI keeps the conversation now; empty
// until it has said so.
func (t *Turn) SessionID() string { return t.sessionID }

// observe changes the state and returns the events beside the output event.
// The line is valid UTF-8.
func (t *Turn) observe(stream string, line []byte) []stromboli.Event {
	if stream != Stdout {
		t.stderr.add(line)
		return nil
	}
	o, cut, ok := parse(line)
	switch {
	case t.format == stromboli.OutputStreamJSON && (!ok || visible(o)):
		t.printed.add(line)
	case t.format == stromboli.OutputJSON && t.all && ok && !cut && visible(o):
		t.printed.add(line)
	}
	if !ok {
		return nil
	}
	if o.result(cut) {
		return t.onResult(o, line, cut)
	}
	switch kind, sub := o.kind(); kind {
	case "system":
		return t.onSystem(o, sub)
	case "assistant":
		t.onAssistant(o)
	case "user":
		t.onUser(o)
	case "stream_event":
		return t.onStreamEvent(o)
	case "command_lifecycle":
		t.onCommand(get[string](o, "command_uuid"), get[string](o, "state"))
	}
	return nil
}

func (t *Turn) onSystem(o object, sub string) []stromboli.Event {
	switch sub {
	case "init":
		t.begin()
		t.setSession(o)
		t.answer.reset()
		t.resumed = false
		if m := get[string](o, "model"); m != "" {
			t.usage.setModel(m)
		}
		return t.compare(o)
	case "status":
		if get[string](o, "status") != "" {
			t.begin()
		}
	case "api_retry":
		t.begin()
		return t.supersede()
	case "background_tasks_changed", "task_started", "task_updated", "task_notification":
		t.onTask(o, sub)
	}
	return nil
}

// begin notes that the CLI works on a turn.
func (t *Turn) begin() {
	t.busy = true
	t.awaiting = false
}

func (t *Turn) setSession(o object) {
	if id := get[string](o, "session_id"); IsUUID(id) {
		t.sessionID = id
	}
}

func (t *Turn) onAssistant(o object) {
	t.begin()
	m := get[message](o, "message")
	t.usage.addMessage(m)
	if !o.main() {
		return
	}
	if kind := get[string](o, "error"); kind != "" {
		t.lastError = kind
	}
	for _, b := range m.blocks() {
		if b.Type == "text" {
			t.answer.add(b.Text)
			t.undone = 0
		}
	}
}

// resumes reports whether this is what the CLI tells the model after an answer
// that was cut by a lost connection or by the limit of output tokens. The
// result that follows holds the rest only.
func resumes(text string) bool {
	return strings.HasPrefix(text, "Your response above was cut off") || strings.HasPrefix(text, "Output token limit hit. Resume directly")
}

func (t *Turn) onUser(o object) {
	t.begin()
	if !o.main() {
		return
	}
	for _, b := range get[message](o, "message").blocks() {
		switch b.Type {
		case "tool_result":
			t.answer.reset()
			t.resumed = false
		case "text":
			// Nothing is joined where nothing of the answer survived.
			if resumes(b.Text) && !t.answer.empty() {
				t.resumed = true
			}
		}
	}
}

func (t *Turn) onStreamEvent(o object) []stromboli.Event {
	t.begin()
	if !t.partial || !o.main() {
		return nil
	}
	ev := get[struct {
		Type  string `json:"type"`
		Delta block  `json:"delta"`
	}](o, "event")
	switch {
	case ev.Type == "message_start":
		return t.supersede()
	case ev.Type == "content_block_delta" && ev.Delta.Type == "text_delta" && ev.Delta.Text != "":
		t.undone += len(ev.Delta.Text)
		return []stromboli.Event{event(stromboli.EventText, stromboli.TextData{Text: ev.Delta.Text})}
	}
	return nil
}

// supersededData is the data of a superseded event: the last Bytes bytes of
// the text since the last message_start are void. Text before them in the same
// message came as a completed block and stays.
type supersededData struct {
	Bytes int `json:"bytes"`
}

// supersede voids the deltas of a block that will not be completed any more.
func (t *Turn) supersede() []stromboli.Event {
	if !t.partial || t.undone == 0 {
		return nil
	}
	d := supersededData{Bytes: t.undone}
	t.undone = 0
	return []stromboli.Event{event(stromboli.EventSuperseded, d)}
}

// maxQueued bounds the messages and tasks that are remembered; more of them
// than a run has are a lie.
const maxQueued = 1024

func (t *Turn) onCommand(id, state string) {
	if id == "" {
		return
	}
	kept := t.queued[:0]
	for _, q := range t.queued {
		if q != shorten(id) {
			kept = append(kept, q)
		}
	}
	t.queued = kept
	switch {
	case state == "started":
		t.begin()
	case state == "queued" && len(t.queued) < maxQueued:
		t.queued = append(t.queued, shorten(id))
	}
}

// event makes an event of a type that always encodes.
func event(typ stromboli.EventType, data any) stromboli.Event {
	return stromboli.Event{Type: typ, Data: bytes.TrimSuffix(encode(data), []byte("\n"))}
}

// warn notes a warning once for the outcome and returns its event.
func (t *Turn) warn(code, text string) []stromboli.Event {
	for _, w := range t.warnings {
		if w.Code == code {
			return nil
		}
	}
	t.warnings = append(t.warnings, stromboli.Warning{Code: code, Message: text})
	return []stromboli.Event{event(stromboli.EventWarning, stromboli.WarningData{Code: code, Message: text})}
}
