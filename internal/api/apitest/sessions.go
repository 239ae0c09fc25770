package apitest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing/iotest"
	"time"

	"github.com/tomblancdev/stromboli"
)

// Shelf implements api.Sessions in memory: what is imported is a session with one
// message per line. "busy" is in use, the transcript "broken" can't be read to
// its end.
type Shelf struct {
	mu   sync.Mutex
	kept map[string]string // transcripts by tenant and name
}

func (s *Shelf) find(p stromboli.Principal, name string) (stromboli.Session, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.ContainsAny(name, "/ ") {
		return stromboli.Session{}, "", stromboli.FieldError("session_id", "is no name")
	}
	text, ok := s.kept[p.Tenant+"/"+name]
	if !ok {
		return stromboli.Session{}, "", stromboli.Errorf(stromboli.NotFound, "there is no session %q", name)
	}
	at := time.Unix(1_700_000_000, 0)
	found := stromboli.Session{ID: name, Title: "Title of " + name, CreatedAt: at, UpdatedAt: at, RunCount: 2, CostUSD: 0.5}
	if name == "busy" {
		found.ActiveRun = "run-1"
	}
	return found, text, nil
}

// Session implements api.Sessions.
func (s *Shelf) Session(_ context.Context, p stromboli.Principal, name string) (stromboli.Session, error) {
	found, _, err := s.find(p, name)
	return found, err
}

// ListSessions implements api.Sessions: a page for each session.
func (s *Shelf) ListSessions(_ context.Context, p stromboli.Principal, f stromboli.SessionFilter) ([]stromboli.Session, string, error) {
	if f.Cursor == "bad" {
		return nil, "", stromboli.FieldError("cursor", "is not a cursor of this list")
	}
	var list []stromboli.Session
	for _, name := range []string{"a", "broken", "busy"} {
		found, _, err := s.find(p, name)
		if err == nil && (f.Active == nil || *f.Active == (found.ActiveRun != "")) && (f.Cursor == "" || name > f.Cursor) {
			list = append(list, found)
		}
	}
	if len(list) > f.Limit {
		return list[:f.Limit], list[f.Limit-1].ID, nil
	}
	return list, "", nil
}

// DeleteSession implements api.Sessions.
func (s *Shelf) DeleteSession(_ context.Context, p stromboli.Principal, name string) (stromboli.Session, error) {
	found, _, err := s.find(p, name)
	if err == nil && found.ActiveRun != "" {
		err = stromboli.Errorf(stromboli.SessionBusy, "session %s is in use", name)
	}
	if err == nil {
		s.mu.Lock()
		delete(s.kept, p.Tenant+"/"+name)
		s.mu.Unlock()
	}
	return found, err
}

// Messages implements api.Sessions.
func (s *Shelf) Messages(_ context.Context, p stromboli.Principal, name string, offset, limit int) (stromboli.MessagePage, error) {
	_, text, err := s.find(p, name)
	page := stromboli.MessagePage{Messages: []stromboli.Message{}}
	for line := range strings.Lines(text) {
		if page.Total >= offset && len(page.Messages) < limit {
			page.Messages = append(page.Messages, message(strings.TrimSpace(line)))
		}
		page.Total++
	}
	return page, err
}

func message(text string) stromboli.Message {
	block := stromboli.MessageBlock{Type: "text", Text: text}
	return stromboli.Message{UUID: "id-" + text, Type: "user", Content: stromboli.MessageContent{Role: "user", Content: []stromboli.MessageBlock{block}}}
}

// Message implements api.Sessions.
func (s *Shelf) Message(ctx context.Context, p stromboli.Principal, name, id string) (stromboli.Message, error) {
	page, err := s.Messages(ctx, p, name, 0, 1<<30)
	for _, m := range page.Messages {
		if m.UUID == id {
			return m, nil
		}
	}
	if err == nil {
		err = stromboli.Errorf(stromboli.NotFound, "there is no message %q", id)
	}
	return stromboli.Message{}, err
}

// Transcript implements api.Sessions.
func (s *Shelf) Transcript(_ context.Context, p stromboli.Principal, name string) (stromboli.Session, io.ReadCloser, error) {
	found, text, err := s.find(p, name)
	var r io.Reader = strings.NewReader(text)
	if name == "broken" {
		r = io.MultiReader(r, iotest.ErrReader(errors.New("the disk is broken")))
	}
	return found, io.NopCloser(r), err
}

// ImportSession implements api.Sessions.
func (s *Shelf) ImportSession(ctx context.Context, p stromboli.Principal, name string, transcript io.Reader) (stromboli.Session, error) {
	text, err := io.ReadAll(transcript)
	if err != nil {
		return stromboli.Session{}, err
	}
	if len(text) == 0 {
		return stromboli.Session{}, stromboli.FieldError("transcript", "is empty")
	}
	s.mu.Lock()
	if s.kept == nil {
		s.kept = map[string]string{}
	}
	s.kept[p.Tenant+"/"+name] = string(text)
	s.mu.Unlock()
	return s.Session(ctx, p, name)
}
