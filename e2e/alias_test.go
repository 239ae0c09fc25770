package e2e_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
)

// sessionAlias: a session is called by a name of its caller's.
func sessionAlias(t *testing.T, s *server) {
	const alias = "Nightly.build_7"
	in := keyed("alias-first", text("the word is alias"))
	in.Claude.SessionID = alias
	sub, err := s.c.RunAsync(s.ctx(), in)
	if err != nil || sub.SessionAlias != alias || len(sub.SessionID) != 36 {
		t.Fatalf("%+v, %v", sub, err)
	}
	first := s.await(t, sub.JobID)
	if first.want(t, stromboli.Completed, ""); first.SessionID != sub.SessionID || first.SessionAlias != alias {
		t.Errorf("%s, %s", first.SessionID, first.SessionAlias)
	}
	s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 409, "session_exists", "")

	o := s.send(t, "POST", "/run", specJSON(t, inSession(alias, keyed("alias-second", text("x"))))).want(t, 200).object(t)
	if o["session_id"] != first.SessionID || o["session_alias"] != alias || !s.told(t, "alias-second", "the word is alias") {
		t.Errorf("resumed by alias: %v", o)
	}
	// By the id, in whatever case; the case of an alias counts.
	r := s.do(t, inSession(strings.ToUpper(first.SessionID), spec(text("x"))))
	if r.SessionID != first.SessionID || r.SessionAlias != alias {
		t.Errorf("resumed by id: %s, %q", r.SessionID, r.SessionAlias)
	}
	s.send(t, "POST", "/run", specJSON(t, inSession(strings.ToLower(alias), spec(text("x"))))).refused(t, 404, "not_found", "")

	// The form for an EventSource makes a session or goes on with it.
	q := url.Values{"session_id": {"stream-alias"}, "prompt": {keyed("alias-stream-1", text("the word is streamed")).Prompt}}
	var done struct {
		SessionID    string `json:"session_id"`
		SessionAlias string `json:"session_alias"`
	}
	var ids []string
	for range 2 {
		blocks := sseBlocks(t, s.send(t, "GET", "/run/stream?"+q.Encode(), "").want(t, 200).body)
		if err := json.Unmarshal([]byte(blocks[len(blocks)-1].data), &done); err != nil || done.SessionAlias != "stream-alias" {
			t.Errorf("done is %+v, %v", blocks[len(blocks)-1], err)
		}
		ids = append(ids, done.SessionID)
		q.Set("prompt", keyed("alias-stream-2", text("x")).Prompt)
	}
	if ids[0] != ids[1] || !s.told(t, "alias-stream-2", "the word is streamed") {
		t.Errorf("two sessions have one alias: %v", ids)
	}
	page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", SessionID: "stream-alias"})
	if err != nil || len(page.Jobs) != 2 {
		t.Errorf("%d runs of the alias, %v", len(page.Jobs), err)
	}
	// A fork has no alias: it is the source's.
	if r := s.do(t, forked(alias, spec(text("x")))); r.SessionAlias != "" || r.SessionID == first.SessionID || r.Status != stromboli.Completed {
		t.Errorf("fork: %s %q %s", r.SessionID, r.SessionAlias, r.Status)
	}

	// Many at once: one makes it.
	in = spec(text("x"))
	in.Claude.SessionID = "raced"
	var mu sync.Mutex
	codes := map[string]int{}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			_, err := s.c.RunAsync(s.ctx(), in)
			mu.Lock()
			defer mu.Unlock()
			codes[string(stromboli.CodeOf(err))]++
		})
	}
	wg.Wait()
	if codes["session_exists"] != 5 {
		t.Errorf("answers: %v", codes)
	}
}
