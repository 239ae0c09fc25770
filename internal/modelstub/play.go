package modelstub

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	smallChunk = 24
	largeChunk = 16 << 10
	filler     = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\n"
	pingEvery  = 10 * time.Second
)

// player writes one answer.
type player struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	ctx  context.Context //nolint:containedctx // one request's, and gone with it
	conv *conversation
	pace time.Duration
	id   string
	sent int // whole blocks
	out  int // bytes of content
}

func newPlayer(w http.ResponseWriter, r *http.Request, conv *conversation, pace time.Duration) *player {
	return &player{w: w, rc: http.NewResponseController(w), ctx: r.Context(), conv: conv, pace: pace, id: rand.Text()}
}

// play answers with one step.
func (p *player) play(s Step) {
	p.pause(time.Duration(s.DelayMS) * time.Millisecond)
	for k, v := range s.Headers {
		p.w.Header().Set(k, v)
	}
	p.w.Header().Set("Request-Id", "req_"+p.id)
	if s.Hang == "before" {
		<-p.ctx.Done()
		panic(http.ErrAbortHandler)
	}
	if s.Status != 0 && s.Status != http.StatusOK {
		writeError(p.w, s.Status, s.apiError())
		return
	}
	if s.PaceMS > 0 {
		p.pace = time.Duration(s.PaceMS) * time.Millisecond
	}
	if !p.conv.Stream {
		p.whole(s)
		return
	}
	p.w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	p.w.Header().Set("Cache-Control", "no-cache")
	p.event("message_start", map[string]any{"message": p.message(nil, "", 1)})
	p.event("ping", map[string]any{})
	blocks := s.blocks()
	for i, b := range blocks {
		p.block(i, b, s, i == lastText(blocks))
		p.sent++
	}
	p.cutAt(s.Cut, 0)
	if s.Hang == "after" {
		p.hang()
	}
	p.event("message_delta", map[string]any{
		"delta": map[string]any{"stop_reason": s.stopReason(), "stop_sequence": nil},
		"usage": p.usage(tokens(p.out)),
	})
	p.event("message_stop", map[string]any{})
}

// block streams one content block in deltas.
func (p *player) block(i int, b Block, s Step, long bool) {
	p.cutAt(s.Cut, 0)
	start, kind, field, text := map[string]any{"type": "text", "text": ""}, "text_delta", "text", b.Text
	switch {
	case b.ToolUse != nil:
		start = map[string]any{"type": "tool_use", "id": p.toolID(i, b.ToolUse), "name": b.ToolUse.Name, "input": struct{}{}}
		kind, field, text = "input_json_delta", "partial_json", string(b.ToolUse.input())
	case b.Thinking != "":
		start = map[string]any{"type": "thinking", "thinking": "", "signature": ""}
		kind, field, text = "thinking_delta", "thinking", b.Thinking
	}
	p.event("content_block_start", map[string]any{"index": i, "content_block": start})
	size, left := int64(len(text)), s.Bytes
	if long && left > 0 {
		size = left
		if text == "" {
			text = filler
		}
	}
	deltas := 0
	for off := int64(0); off < size; {
		part := piece(text, off, min(size-off, int64(s.chunk(size))))
		p.event("content_block_delta", map[string]any{"index": i, "delta": map[string]any{"type": kind, field: part}})
		off += int64(len(part))
		p.out += len(part)
		deltas++
		p.cutAt(s.Cut, deltas)
		p.pause(p.pace)
	}
	if kind == "thinking_delta" {
		p.event("content_block_delta", map[string]any{"index": i, "delta": map[string]any{"type": "signature_delta", "signature": "c3R1Yg=="}})
	}
	p.event("content_block_stop", map[string]any{"index": i})
}

// cutAt closes the connection if the cut is here.
func (p *player) cutAt(c *Cut, deltas int) {
	if c != nil && c.Blocks == p.sent && c.Deltas == deltas {
		_ = p.rc.Flush()
		p.pause(time.Duration(c.AfterMS) * time.Millisecond)
		panic(http.ErrAbortHandler)
	}
}

// hang keeps the stream open, with the pings of the real one, until the client goes.
func (p *player) hang() {
	for p.ctx.Err() == nil {
		p.pause(pingEvery)
		p.event("ping", map[string]any{})
	}
	panic(http.ErrAbortHandler)
}

// pause waits, and ends the answer when the client has gone.
func (p *player) pause(d time.Duration) {
	if d <= 0 {
		if p.ctx.Err() != nil {
			panic(http.ErrAbortHandler)
		}
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.ctx.Done():
		panic(http.ErrAbortHandler)
	}
}

// event sends one server-sent event at once.
func (p *player) event(kind string, fields map[string]any) {
	fields["type"] = kind
	data, err := json.Marshal(fields)
	if err != nil {
		panic(http.ErrAbortHandler) // only a script's own raw JSON could do that, and it was parsed
	}
	var b bytes.Buffer
	b.WriteString("event: " + kind + "\ndata: ")
	b.Write(data)
	b.WriteString("\n\n")
	if _, err := p.w.Write(b.Bytes()); err != nil {
		panic(http.ErrAbortHandler)
	}
	if err := p.rc.Flush(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// whole answers a request that didn't ask for a stream.
func (p *player) whole(s Step) {
	content := []map[string]any{}
	blocks := s.blocks()
	for i, b := range blocks {
		switch {
		case b.ToolUse != nil:
			content = append(content, map[string]any{"type": "tool_use", "id": p.toolID(i, b.ToolUse), "name": b.ToolUse.Name, "input": b.ToolUse.input()})
		case b.Thinking != "":
			content = append(content, map[string]any{"type": "thinking", "thinking": b.Thinking, "signature": "c3R1Yg=="})
		default:
			text := b.Text
			if i == lastText(blocks) && s.Bytes > 0 {
				var long strings.Builder
				for int64(long.Len()) < s.Bytes {
					long.WriteString(piece(text+filler, int64(long.Len()), s.Bytes-int64(long.Len())))
				}
				text = long.String()
			}
			p.out += len(text)
			content = append(content, map[string]any{"type": "text", "text": text})
		}
	}
	p.cutAt(s.Cut, 0)
	writeJSON(p.w, http.StatusOK, p.message(content, s.stopReason(), tokens(p.out)))
}

func (p *player) message(content []map[string]any, stop string, out int) map[string]any {
	m := map[string]any{
		"id": "msg_" + p.id, "type": "message", "role": "assistant", "model": p.conv.Model,
		"content": content, "stop_reason": nil, "stop_sequence": nil, "usage": p.usage(out),
	}
	if content == nil {
		m["content"] = []any{}
	}
	if stop != "" {
		m["stop_reason"] = stop
	}
	return m
}

func (p *player) usage(out int) map[string]any {
	return map[string]any{
		"input_tokens": tokens(p.conv.size), "output_tokens": out,
		"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
	}
}

func (p *player) toolID(i int, t *ToolUse) string {
	if t.ID != "" {
		return t.ID
	}
	return "toolu_" + p.id + strconv.Itoa(i)
}

func (t *ToolUse) input() json.RawMessage {
	if len(t.Input) == 0 {
		return json.RawMessage("{}")
	}
	return t.Input
}

func (s Step) chunk(size int64) int {
	if s.Chunk > 0 {
		return s.Chunk
	}
	if size > 1<<16 {
		return largeChunk
	}
	return smallChunk
}

func (s Step) apiError() APIError {
	if s.Error != nil {
		return *s.Error
	}
	kinds := map[int]string{
		400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
		413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error",
	}
	kind, ok := kinds[s.Status]
	if !ok {
		kind = "api_error"
	}
	return APIError{Type: kind, Message: "scripted " + strconv.Itoa(s.Status)}
}

// piece returns at most n bytes of text repeated for ever, from byte off,
// without splitting a character unless n is smaller than one.
func piece(text string, off, n int64) string {
	at := off % int64(len(text))
	end := min(at+n, int64(len(text)))
	for end < int64(len(text)) && end > at+1 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[at:end]
}

func lastText(blocks []Block) int {
	for i := len(blocks) - 1; i >= 0; i-- {
		if blocks[i].ToolUse == nil && blocks[i].Thinking == "" {
			return i
		}
	}
	return -1
}
