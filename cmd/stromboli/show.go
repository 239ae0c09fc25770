package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// maxShown bounds how much of a tool's output is printed, in lines.
const maxShown = 12

// show prints a run's events for a person.
type show struct {
	w     io.Writer
	start time.Time
	mu    sync.Mutex
}

// event prints one event; most are silent.
func (s *show) event(e stromboli.Event) {
	switch e.Type {
	case stromboli.EventPhase:
		var d stromboli.PhaseData
		if json.Unmarshal(e.Data, &d) == nil {
			s.line("·", string(d.Phase))
		}
	case stromboli.EventRunStarted:
		var d stromboli.StartedData
		if json.Unmarshal(e.Data, &d) == nil {
			s.line("·", fmt.Sprintf("sandbox %s (%s start), image %s, agent uid %d", d.Sandbox, d.Start, d.Image, d.UID))
		}
	case stromboli.EventWarning:
		var d stromboli.WarningData
		if json.Unmarshal(e.Data, &d) == nil {
			s.line("!", "warning: "+d.Message)
		}
	case stromboli.EventOutput:
		var d stromboli.OutputData
		if json.Unmarshal(e.Data, &d) != nil {
			return
		}
		if d.Stream == "stderr" {
			s.line("!", d.Line)
			return
		}
		s.cliLine(d.Line)
	default:
	}
}

func (s *show) line(mark, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.w, "%6.2fs %s %s\n", time.Since(s.start).Seconds(), mark, printable(text))
}

// block is a content block of a message in the CLI's output.
type block struct {
	Type    string          `json:"type"`
	Text    string          `json:"text"`
	Name    string          `json:"name"`
	Input   json.RawMessage `json:"input"`
	Content json.RawMessage `json:"content"`
	IsError bool            `json:"is_error"`
}

// cliLine prints what a line of the CLI says, tools and their results above all.
func (s *show) cliLine(line string) {
	var l struct {
		Type    string `json:"type"`
		Subtype string `json:"subtype"`
		Message struct {
			Content json.RawMessage `json:"content"`
		} `json:"message"`
	}
	if json.Unmarshal([]byte(line), &l) != nil {
		return
	}
	if l.Type == "system" && l.Subtype == "api_retry" {
		s.line("!", "the model didn't answer, the agent tries again")
	}
	var blocks []block
	if json.Unmarshal(l.Message.Content, &blocks) != nil {
		return
	}
	for _, b := range blocks {
		switch {
		case l.Type == "assistant" && b.Type == "text":
			s.text("»", b.Text, math.MaxInt)
		case l.Type == "assistant" && b.Type == "tool_use":
			s.line("▸", b.Name+": "+toolInput(b.Input))
		case l.Type == "user" && b.Type == "tool_result":
			mark := " "
			if b.IsError {
				mark = "✗"
			}
			s.text(mark, resultText(b.Content), maxShown)
		}
	}
}

// text prints at most so many lines.
func (s *show) text(mark, text string, most int) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if i == most {
			s.line(" ", fmt.Sprintf("… %d more lines", len(lines)-i))
			return
		}
		s.line(mark, line)
		mark = " "
	}
}

// toolInput is the telling part of a tool's input.
func toolInput(raw json.RawMessage) string {
	var in map[string]any
	if json.Unmarshal(raw, &in) != nil {
		return ""
	}
	for _, key := range []string{"command", "file_path", "pattern", "url", "description"} {
		if v, ok := in[key].(string); ok {
			return v
		}
	}
	return string(raw)
}

// resultText is a tool result's text, which comes as a string or as blocks.
func resultText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var blocks []block
	if json.Unmarshal(raw, &blocks) != nil {
		return ""
	}
	var b strings.Builder
	for _, x := range blocks {
		b.WriteString(x.Text)
	}
	return b.String()
}

// printable keeps an agent's text from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}
