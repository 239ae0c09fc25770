package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestSessionAPI: what the CLI writes is listed, read message by message and
// exported; a session that is deleted has left nothing, and one that is imported
// from the export goes on with the conversation.
func TestSessionAPI(t *testing.T) {
	t.Parallel()
	s := start(t)
	in := keyed("session-api", bash("echo one; echo two >&2"), text("the magic word is xyzzy"))
	in.Claude.SessionID = "nightly"
	run := s.do(t, in)
	run.want(t, stromboli.Completed, "")
	id := run.SessionID

	list, err := s.c.Sessions(s.ctx(), stromboli.SessionFilter{})
	if err != nil || len(list.Sessions) != 1 || list.HasMore {
		t.Fatalf("%+v, %v", list, err)
	}
	got := list.Sessions[0]
	if got.ID != id || got.Alias != "nightly" || !strings.HasPrefix(got.Title, "Please work. stub:") || got.RunCount != 1 || got.ActiveJob != "" ||
		got.CostUSD <= 0 || got.CostUSD != run.Usage.EstimatedCostUSD || !got.UpdatedAt.After(got.CreatedAt) {
		t.Errorf("listed: %+v; the run's usage %+v", got, run.Usage)
	}
	if one, err := s.c.Session(s.ctx(), "nightly"); err != nil || one != got {
		t.Errorf("by its alias: %+v, %v", one, err)
	}

	messages := sessionMessages(t, s, id)
	sessionShapes(t, id, messages)
	transcript := sessionTranscript(t, s, id)
	if lines := bytes.Count(transcript, []byte("\n")); lines <= len(messages) || !bytes.Contains(transcript, []byte("xyzzy")) {
		t.Errorf("the transcript has %d lines for %d messages", lines, len(messages))
	}

	// Not while a run holds it.
	busy := s.submit(t, inSession(id, keyed("session-busy", bash("sleep 60"), text("never"))))
	if err := s.c.DeleteSession(s.ctx(), id); !errors.Is(err, stromboli.SessionBusy) {
		t.Errorf("in use: %v", err)
	}
	if held, err := s.c.Session(s.ctx(), id); err != nil || held.ActiveJob != busy {
		t.Errorf("held: %+v, %v", held, err)
	}
	if err := s.c.Cancel(s.ctx(), busy); err != nil {
		t.Fatal(err)
	}
	s.events(busy) // to their end

	if err := s.c.DeleteSession(s.ctx(), "nightly"); err != nil {
		t.Fatal(err)
	}
	sessionGone(t, s, id)
	if _, err := s.c.Job(s.ctx(), busy); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("its run: %v", err)
	}

	back, err := s.c.ImportSession(s.ctx(), "", bytes.NewReader(transcript))
	if err != nil || back.ID != id || !strings.HasPrefix(back.Title, "Please work.") {
		t.Fatalf("%+v, %v", back, err)
	}
	if again := sessionTranscript(t, s, id); !bytes.Equal(again, transcript) {
		t.Errorf("the imported transcript has %d bytes of %d", len(again), len(transcript))
	}
	s.do(t, inSession(id, keyed("session-imported", text("goes on")))).want(t, stromboli.Completed, "")
	if q := s.requests(t, "session-imported")[0]; !strings.Contains(q.raw, "the magic word is xyzzy") {
		t.Error("the model didn't see the imported conversation")
	}
	if n := len(sessionMessages(t, s, id)); n <= len(messages) {
		t.Errorf("%d messages after %d", n, len(messages))
	}
}

// sessionMessages reads a conversation in pages of three.
func sessionMessages(t *testing.T, s *server, id string) []stromboli.Message {
	t.Helper()
	var all []stromboli.Message
	for more := true; more; {
		page, err := s.c.Messages(s.ctx(), id, len(all), 3)
		if err != nil || len(page.Messages) == 0 || len(page.Messages) > 3 {
			t.Fatalf("%+v, %v", page, err)
		}
		all, more = append(all, page.Messages...), page.HasMore
		if !more && page.Total != len(all) {
			t.Fatalf("%d messages of %d", len(all), page.Total)
		}
	}
	return all
}

// sessionShapes looks for each kind of message that the CLI wrote, as the
// contract has it.
func sessionShapes(t *testing.T, id string, messages []stromboli.Message) {
	t.Helper()
	found := map[string]bool{}
	ids := map[string]bool{}
	for _, m := range messages {
		if m.SessionID != id || m.UUID == "" || ids[m.UUID] || m.Timestamp.IsZero() || m.Content.Role == "" {
			t.Errorf("%+v", m)
		}
		ids[m.UUID] = true
		if m.Type != "queue-operation" && (m.CWD != "/workspace" || m.Version == "") {
			t.Errorf("%+v", m)
		}
		found[m.Type] = true
		for _, b := range m.Content.Content {
			switch {
			case b.Type == "text" && m.Type == "user" && strings.HasPrefix(b.Text, "Please work."):
				found["prompt"] = true
			case b.Type == "tool_use" && b.Name == "Bash" && b.ID != "" && bytes.Contains(b.Input, []byte("echo one")) && m.Content.Model != "" && m.Content.MessageID != "":
				found["tool_use"] = true
			case b.Type == "tool_result" && b.ToolUseID != "" && strings.Contains(b.Content, "one") && !b.IsError && m.ToolResult != nil && strings.Contains(m.ToolResult.Stdout, "one"):
				found["tool_result"] = true
			case b.Type == "text" && m.Type == "assistant" && b.Text == "the magic word is xyzzy" && m.Content.Usage != nil && m.Content.Usage.OutputTokens > 0:
				found["answer"] = true
			}
		}
	}
	for _, want := range []string{"user", "assistant", "queue-operation", "prompt", "tool_use", "tool_result", "answer"} {
		if !found[want] {
			t.Errorf("no message is a %s: %+v", want, messages)
		}
	}
}

func sessionTranscript(t *testing.T, s *server, id string) []byte {
	t.Helper()
	r, err := s.c.Transcript(s.ctx(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if !json.Valid(lines.Bytes()) {
			t.Fatalf("a line of the transcript: %.100q", lines.Bytes())
		}
	}
	return b
}

func sessionGone(t *testing.T, s *server, id string) {
	t.Helper()
	for _, path := range []string{filepath.Join("sessions", id), filepath.Join("blobs", "transcripts", id)} {
		if _, err := os.Stat(filepath.Join(s.data, path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, ask := range map[string]func() error{
		"session":    func() error { _, err := s.c.Session(s.ctx(), id); return err },
		"messages":   func() error { _, err := s.c.Messages(s.ctx(), id, 0, 0); return err },
		"transcript": func() error { _, err := s.c.Transcript(s.ctx(), id); return err },
		"delete":     func() error { return s.c.DeleteSession(s.ctx(), id) },
	} {
		if err := ask(); !errors.Is(err, stromboli.NotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := s.c.Sessions(s.ctx(), stromboli.SessionFilter{}); err != nil || len(list.Sessions) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}
