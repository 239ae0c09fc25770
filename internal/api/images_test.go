package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

func gallery() *apitest.Gallery {
	made := time.Date(2025, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	return &apitest.Gallery{
		Images: []stromboli.Image{
			{
				ID: "abc", Repository: "docker.io/library/python", Tag: "3.12", Bytes: 12, Created: made, Rank: 1, RankReason: "Declared.",
				Tools: []string{"git"}, CLI: true, Description: "for agents", Labels: map[string]string{"a": "b"},
			},
			{ID: "def", Repository: "localhost:5000/x/search", Tag: "1", Created: made, Rank: 4, RankReason: "No bash."},
		},
		Found: []stromboli.FoundImage{{Index: "docker.io", Name: "docker.io/library/python", Stars: 3, Official: true}},
	}
}

func TestImages(t *testing.T) {
	images := gallery()
	s := start(t, func(c *api.Config) { c.Images = images })
	const python = `"id":"abc","repository":"docker.io/library/python","tag":"3.12","size":12,"created":"2025-01-02T02:04:05Z","compatibility_rank":1,"compatible":true,"tools":["git"],"has_claude_cli":true,"description":"for agents"`
	const other = `{"id":"def","repository":"localhost:5000/x/search","tag":"1","size":0,"created":"2025-01-02T02:04:05Z","compatibility_rank":4,"compatible":false,"tools":[],"has_claude_cli":false,"description":""`
	if got := s.ask("GET", "/images", ""); got.status != 200 || strings.TrimSpace(got.raw) != `{"images":[{`+python+`},`+other+`}]}` {
		t.Errorf("list: %d %s", got.status, got.raw)
	}
	for _, path := range []string{"docker.io/library/python:3.12", "docker.io%2Flibrary%2Fpython:3.12", "docker.io%2flibrary/python%3A3.12", "python:3.12", "/docker.io//library/python:3.12"} {
		if got := s.ask("GET", "/images/"+path, ""); got.status != 200 || strings.TrimSpace(got.raw) != `{`+python+`,"labels":{"a":"b"},"rank_description":"Declared."}` {
			t.Errorf("%s: %d %s", path, got.status, got.raw)
		}
	}
	if got := s.ask("GET", "/images/search:1", ""); got.status != 200 || !strings.HasPrefix(got.raw, other+`,"labels":{}`) {
		t.Errorf("an image named search: %d %s", got.status, got.raw)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/images/none", "", 404, "not_found"},
		{"GET", "/images/", "", 404, "not_found"},
		{"GET", "/images/%00", "", 404, "not_found"},
		{"DELETE", "/images/python:3.12", "", 405, "method_not_allowed"},
		{"GET", "/images/search", "", 400, `"field":"q"`},
		{"GET", "/images/search?q=%20", "", 400, `"field":"q"`},
		{"GET", "/images/search?q=x&limit=0", "", 400, `"field":"limit"`},
		{"GET", "/images/search?q=x&limit=101", "", 400, `"field":"limit"`},
		{"GET", "/images/search?q=x&limit=1.5", "", 400, `"field":"limit"`},
		{"GET", "/images/search?q=x&no_trunc=maybe", "", 400, `"field":"no_trunc"`},
		{"GET", "/images/search?q=broken", "", 502, "registry_failed"},
		{"GET", "/images/search?q=x&limit=7&no_trunc=true", "", 200, `{"results":[{"index":"docker.io","name":"docker.io/library/python","description":"","stars":3,"official":true,"automated":false}]}`},
		{"POST", "/images/pull", `{"image":"ghcr.io/a/b:1"}`, 200, `{"success":true,"image":"ghcr.io/a/b:1","image_id":"id-ghcr.io/a/b:1"}`},
		{"POST", "/images/pull", `{"image":"a","platform":"","quiet":true}`, 200, `"success":true`},
		{"POST", "/images/pull", `{"image":""}`, 400, `"field":"image"`},
		{"POST", "/images/pull", `{"image":7}`, 400, `"field":"image"`},
		{"POST", "/images/pull", `{"image":"a","quiet":"yes"}`, 400, `"field":"quiet"`},
		{"POST", "/images/pull", `{"image":"a","tag":"b"}`, 400, `"field":"tag"`},
		{"POST", "/images/pull", `{"image":"forbidden"}`, 400, "image_not_allowed"},
		{"POST", "/images/pull", ``, 400, "empty"},
	} {
		if got := s.ask(c.method, c.path, c.body); got.status != c.status || !strings.Contains(got.raw, c.says) {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.raw)
		}
	}
	if got := s.ask("POST", "/images/pull", `{"image":"a"}`, "Sec-Fetch-Site: cross-site"); got.status != 403 {
		t.Errorf("from a foreign page: %d", got.status)
	}
	if q := images.Queries(); q[len(q)-1] != (stromboli.ImageQuery{Term: "x", Limit: 7, NoTrunc: true}) {
		t.Errorf("asked for %+v", q)
	}
}

// TestPullStream: progress as events, then done or error; refusals are ordinary
// answers.
func TestPullStream(t *testing.T) {
	images, beaten := gallery(), make(chan struct{})
	images.Pulling = func(_ context.Context, w stromboli.ImageWish, progress func(stromboli.ImageProgress)) (stromboli.PulledImage, error) {
		if !w.Keep {
			t.Error("the pull wouldn't be kept")
		}
		for i := range 3 {
			progress(stromboli.ImageProgress{Image: w.Name, Stage: stromboli.StageDownloading, Current: i + 1})
		}
		<-beaten
		if w.Name == "broken" {
			return stromboli.PulledImage{}, stromboli.Errorf(stromboli.RegistryFailed, "the registry\nfailed")
		}
		return stromboli.PulledImage{Name: w.Name, ID: "id"}, nil
	}
	s := start(t, func(c *api.Config) { c.Images = images; c.Heartbeat = 10 * time.Millisecond })
	slow := s.send(t.Context(), "POST", "/images/pull", `{"image":"slow"}`, "Accept: text/event-stream")
	lines := bufio.NewScanner(slow.Body)
	for lines.Scan() && lines.Text() != ": still here" {
	}
	slow.Body.Close()
	close(beaten)
	got := s.ask("POST", "/images/pull", `{"image":"a:1"}`, "Accept: text/event-stream")
	if got.status != 200 || got.header.Get("Content-Type") != "text/event-stream" ||
		!strings.Contains(got.raw, "event: progress\ndata: {\"image\":\"a:1\",\"stage\":\"downloading\",\"current\":3,\"total\":0}\n\n") ||
		!strings.HasSuffix(got.raw, "event: done\ndata: {\"success\":true,\"image\":\"a:1\",\"image_id\":\"id\"}\n\n") {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("POST", "/images/pull", `{"image":"a:1","quiet":true}`, "Accept: text/event-stream"); strings.Contains(got.raw, "progress") || !strings.Contains(got.raw, "event: done") {
		t.Errorf("quiet: %s", got.raw)
	}
	got = s.ask("POST", "/images/pull", `{"image":"broken"}`, "Accept: application/json, text/event-stream")
	i := strings.Index(got.raw, "event: error\ndata: ")
	var body map[string]any
	if i < 0 || json.NewDecoder(bufio.NewReader(strings.NewReader(got.raw[i+len("event: error\ndata: "):]))).Decode(&body) != nil ||
		body["code"] != "registry_failed" || body["error"] != "the registry\nfailed" || body["request_id"] == "" {
		t.Errorf("%s", got.raw)
	}
	if got := s.ask("POST", "/images/pull", `{"image":"forbidden"}`, "Accept: text/event-stream"); got.status != 400 || got.body["code"] != "image_not_allowed" {
		t.Errorf("%d %s", got.status, got.raw)
	}
}

// TestPullAndStop: who waits for a pull when the server stops is told so.
func TestPullAndStop(t *testing.T) {
	images := gallery()
	begun := make(chan struct{}, 2)
	images.Pulling = func(ctx context.Context, _ stromboli.ImageWish, _ func(stromboli.ImageProgress)) (stromboli.PulledImage, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return stromboli.PulledImage{}, ctx.Err()
	}
	s := start(t, func(c *api.Config) { c.Images = images })
	answers := make(chan answer, 2)
	for _, accept := range []string{"Accept: application/json", "Accept: text/event-stream"} {
		go func() { answers <- s.ask("POST", "/images/pull", `{"image":"a:1"}`, accept) }()
		<-begun
	}
	s.api.Drain()
	for range 2 {
		got := <-answers
		if got.status == 503 && got.body["code"] == "draining" || got.status == 200 && strings.Contains(got.raw, "retry: ") {
			continue
		}
		t.Errorf("%d %s", got.status, got.raw)
	}
}
