package e2e_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // ages are counted in hours: the test makes runs older

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob/blobtest"
)

// older makes what has ended older, while no server runs.
func (s *server) older(hours int) {
	s.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(s.data, "stromboli.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = db.ExecContext(context.Background(), `UPDATE runs SET finished_at = finished_at - ?, created_at = created_at - ?`, hours*3600_000, hours*3600_000)
	if err = errors.Join(err, db.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// gc runs the command and returns what went, by kind.
func (s *server) gc(args ...string) map[string]int64 {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), suite.bin, append([]string{"gc", "--json"}, args...)...)
	cmd.Env = s.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var answer struct {
		Results []struct {
			Kind, Error string
			Count       int64
		}
	}
	if jerr := json.Unmarshal(out, &answer); jerr != nil {
		s.t.Fatalf("gc: %v, %v: %s%s", err, jerr, out, stderr.String())
	}
	went := map[string]int64{}
	for _, r := range answer.Results {
		went[r.Kind] = r.Count
		if r.Error != "" {
			went["error: "+r.Kind]++
		}
	}
	if (err != nil) != strings.Contains(string(out), `"error"`) {
		s.t.Errorf("gc's exit code: %v: %s", err, out)
	}
	return went
}

// component is what /health says of a part.
func (s *server) component(name string) string {
	s.t.Helper()
	_, body := s.fetch("/health", "")
	var h struct {
		Components []struct{ Name, Status, Error string }
	}
	if err := json.Unmarshal(body, &h); err != nil {
		s.t.Fatal(err)
	}
	for _, c := range h.Components {
		if c.Name == name {
			return c.Error
		}
	}
	s.t.Errorf("/health doesn't tell of %s: %s", name, body)
	return ""
}

func (s *server) fetch(path, lastEvent string) (int, []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if lastEvent != "" {
		req.Header.Set("Last-Event-ID", lastEvent)
	}
	res, err := (&http.Client{Timeout: 2 * time.Minute, Transport: canaryTransport{s.t, &http.Transport{DisableKeepAlives: true}}}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, body
}

// TestArchive: the events of finished runs move to a bucket and are read from there
// as before, by pages and as a stream; a bucket that is down costs nothing; a deleted
// session's are gone from it; gc works with a server and without.
func TestArchive(t *testing.T) {
	bucket := blobtest.Start(t)
	s := start(t, append(bucket.Env, "STROMBOLI_ARCHIVE_URL="+bucket.URL, "STROMBOLI_RETENTION_RUNS=100h")...)
	first := s.do(t, keyed("first", bash("seq 2000"), text("one")))
	first.want(t, stromboli.Completed, "")
	events := s.events(first.ID)
	stream := func(id, after string) string {
		_, body := s.fetch("/jobs/"+id+"/stream", after)
		return string(body)
	}
	middle := strconv.FormatInt(events[len(events)/2].Seq, 10)
	whole, rest := stream(first.ID, ""), stream(first.ID, middle)
	archived := func() int {
		files, _ := filepath.Glob(filepath.Join(bucket.Dir, "some", "prefix", "events", "*", "*.jsonl.zst"))
		return len(files)
	}
	if went := s.gc(); went["events"] != 0 || archived() != 0 {
		t.Errorf("a young run's events went: %v", went)
	}
	s.stop()
	s.older(2)
	if went := s.gc("--dry-run"); went["events"] != 1 || went["runs"] != 0 || archived() != 0 {
		t.Errorf("gc --dry-run without a server: %v", went)
	}
	s.up() // which sweeps at once
	waitFor(t, "the archive", func() bool { return archived() == 1 })
	s.kill()
	s.up()
	s.gc() // when it has ended the sweep of the start has
	if got := s.events(first.ID); !reflect.DeepEqual(got, events) {
		t.Errorf("%d events of the archive differ from %d of the database", len(got), len(events))
	}
	if got := stream(first.ID, ""); got != whole {
		t.Errorf("the stream differs:\n%s\n%s", got, whole)
	}
	if got := stream(first.ID, middle); got != rest {
		t.Errorf("the resumed stream differs:\n%s\n%s", got, rest)
	}
	if s.component("archive") != "" {
		t.Error("the archive is not well")
	}

	second := s.do(t, keyed("second", text("two")))
	second.want(t, stromboli.Completed, "")
	s.stop()
	s.older(2)
	bucket.Stop()
	s.up()
	if went := s.gc(); went["events"] != 0 || went["error: events"] != 1 {
		t.Errorf("gc while the bucket is down: %v", went)
	}
	waitFor(t, "/health to tell that the bucket is down", func() bool { return s.component("archive") != "" })
	if code, body := s.fetch("/readyz", ""); code != http.StatusOK {
		t.Errorf("not ready because the archive isn't: %d: %s", code, body)
	}
	if code, body := s.fetch("/jobs/"+first.ID+"/events", ""); code != http.StatusServiceUnavailable || !strings.Contains(string(body), "archive_down") {
		t.Errorf("events of a bucket that is down: %d: %s", code, body)
	}
	if got := s.events(second.ID); len(got) == 0 || got[len(got)-1].Type != stromboli.EventRunFinished {
		t.Errorf("%d events of a run that could not be archived", len(got))
	}
	bucket.Resume()
	if went := s.gc(); went["events"] != 1 || archived() != 2 {
		t.Errorf("gc when the bucket is well again: %v, %d archives", went, archived())
	}
	waitFor(t, "/health to tell that all is well", func() bool { return s.component("archive") == "" })
	for _, run := range []string{first.SessionID, second.SessionID} {
		if err := s.c.DeleteSession(s.ctx(), run); err != nil {
			t.Fatal(err)
		}
	}
	if archived() != 0 {
		t.Errorf("%d archives of deleted sessions are left", archived())
	}
}
