package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

// The tokens hold the marker that is searched for at the end of every test:
// they are in no file of the server, log or answer.
const (
	authToken = "token-" + canary + "-of-a-tenant"
	authOther = "token-" + canary + "-of-another"
	authJWT   = "secret-" + canary + "-of-at-least-32-bytes"
)

// authServer is a server with two tenants.
func authServer(t *testing.T) *server {
	t.Helper()
	s := prepare(t)
	tokens := filepath.Join(s.dir, "tokens.json")
	err := os.WriteFile(tokens, []byte(`{"tokens":[{"name":"ours","token":"`+authToken+`","tenant":"ours"},{"name":"other","token":"`+authOther+`","tenant":"other"}]}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_API_TOKENS_FILE="+tokens, "STROMBOLI_JWT_SECRET="+authJWT)
	s.up()
	return s
}

// as makes the server's client somebody else's.
func (s *server) as(token string) {
	s.t.Helper()
	c, err := client.New(client.Config{BaseURL: s.url, Token: token, Transport: canaryTransport{s.t, &http.Transport{}}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.CloseIdle)
	s.c = c
}

// authAsk sends one request with a token and returns status and body.
func (s *server) authAsk(method, path, token, body string) (int, string) {
	s.t.Helper()
	var headers []string
	if token != "" {
		headers = append(headers, "X-API-Token: "+token)
	}
	a := s.send(s.t, method, path, body, headers...)
	return a.status, string(a.body)
}

func (s *server) authPair(path, token, body string) (access, refresh string) {
	s.t.Helper()
	status, answer := s.authAsk("POST", path, token, body)
	var pair struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	if err := json.Unmarshal([]byte(answer), &pair); err != nil || status != 200 || pair.Access == "" || pair.Refresh == "" {
		s.t.Fatalf("POST %s: %d, %v", path, status, err)
	}
	return pair.Access, pair.Refresh
}

func (s *server) wantStatus(want int, method, path, token, body string) string {
	s.t.Helper()
	status, answer := s.authAsk(method, path, token, body)
	if status != want {
		s.t.Errorf("%s %s: %d %.300s, want %d", method, path, status, answer, want)
	}
	return answer
}

// nowhere checks that no file of the server's and no line of its log has a token.
func (s *server) nowhere(tokens ...string) {
	s.t.Helper()
	log := s.log.tail(1 << 30)
	for _, token := range tokens {
		tag := token[strings.LastIndexByte(token, '.')+1:]
		if strings.Contains(log, tag) {
			s.t.Error("a token is in the server's log")
		}
		err := filepath.WalkDir(s.data, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // of a sandbox that goes just now
				return nil
			}
			if err == nil && e.Type().IsRegular() {
				if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(tag)) {
					s.t.Errorf("a token is in %s", path)
				}
			}
			return err
		})
		if err != nil {
			s.t.Error(err)
		}
	}
}

// TestAuth: a login runs an agent; another tenant sees nothing of it, on no
// endpoint; what was logged out, or used twice, stays void after a kill -9.
func TestAuth(t *testing.T) {
	s := authServer(t)
	s.wantStatus(200, "GET", "/health", "", "")
	s.wantStatus(401, "GET", "/jobs", "", "")
	s.wantStatus(401, "POST", "/run", "", `{"prompt":"x"}`)
	access, refresh := s.authPair("/auth/token", authToken, `{"client_id":"e2e"}`)
	second, next := s.authPair("/auth/refresh", "", `{"refresh_token":"`+refresh+`"}`)

	s.as(second)
	if err := s.c.CreateSecret(s.ctx(), "theirs", "v"); err != nil {
		t.Fatal(err)
	}
	job, err := s.c.Run(s.ctx(), spec(bash("echo hello"), text("done")))
	if err != nil || job.Status != stromboli.Completed {
		t.Fatalf("%s %s, %v", job.Status, job.Error, err)
	}

	var page struct {
		Messages []struct {
			UUID string `json:"uuid"`
		} `json:"messages"`
	}
	messages := s.wantStatus(200, "GET", "/sessions/"+job.SessionID+"/messages", second, "")
	if err := json.Unmarshal([]byte(messages), &page); err != nil || len(page.Messages) == 0 {
		t.Fatalf("%v in %.300s", err, messages)
	}
	told := spec(text("done"))
	told.WebhookURL = "https://hooks.invalid/" // a name that nobody has
	deliveries, err := s.c.Deliveries(s.ctx(), client.DeliveryFilter{JobID: s.do(t, told).ID})
	if err != nil || len(deliveries.Deliveries) != 1 {
		t.Fatalf("%+v, %v", deliveries, err)
	}
	objects := apitest.Objects{Run: job.ID, Session: job.SessionID, Message: page.Messages[0].UUID, Secret: "theirs", Delivery: deliveries.Deliveries[0].ID}
	others, _ := s.authPair("/auth/token", authOther, `{"client_id":"e2e"}`)
	for i, f := range apitest.ForeignRequests(objects) {
		if f.Path == "" {
			continue
		}
		who := []string{authOther, others}[i%2]
		status, answer := s.authAsk(f.Method(), f.Path, who, f.Body)
		refused := status >= 400 && status < 500 && status != 401 && status != 429
		if (f.Status != 0 && status != f.Status) || (f.Status == 0 && !refused) {
			t.Errorf("%s %s: %d %.300s", f.Method(), f.Path, status, answer)
		}
		if status < 400 && (strings.Contains(answer, job.ID[4:]) || strings.Contains(answer, job.SessionID)) || strings.Contains(answer, "hello") {
			t.Errorf("%s %s tells of it: %.300s", f.Method(), f.Path, answer)
		}
	}
	for _, path := range []string{"/jobs/" + job.ID, "/jobs/" + job.ID + "/events", "/jobs/" + job.ID + "/attestation", "/sessions/" + job.SessionID + "/messages/" + page.Messages[0].UUID, "/secrets/theirs"} {
		s.wantStatus(200, "GET", path, second, "") // the control
	}

	// `stromboli run` takes its token from the environment.
	run := func(env ...string) (string, error) {
		cmd := exec.CommandContext(s.ctx(), suite.bin, "run", spec(text("from the command")).Prompt)
		cmd.Env = append(append([]string{}, s.env...), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("STROMBOLI_TOKEN=" + authToken); err != nil || !strings.Contains(out, "from the command") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run(); err == nil || !strings.Contains(out, "STROMBOLI_TOKEN") {
		t.Errorf("without a token: %v: %s", err, out)
	}

	s.wantStatus(200, "POST", "/auth/logout", others, "")
	s.wantStatus(401, "POST", "/auth/refresh", "", `{"refresh_token":"`+refresh+`"}`) // for the second time
	s.kill()
	s.up()
	for _, void := range []string{others, access, second} {
		s.wantStatus(401, "GET", "/jobs", void, "")
	}
	s.wantStatus(401, "POST", "/auth/refresh", "", `{"refresh_token":"`+next+`"}`)
	s.wantStatus(200, "GET", "/jobs/"+job.ID, authToken, "")
	s.nowhere(access, refresh, second, next, others)
}

// TestRunServeWithAuth: a server that is started for one run knows its caller,
// whatever else is configured.
func TestRunServeWithAuth(t *testing.T) {
	s := prepare(t, "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_RATE_LIMIT_ENABLED=true")
	cmd := exec.CommandContext(s.ctx(), suite.bin, "run", "--serve", spec(text("served")).Prompt)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "served") {
		t.Errorf("%v: %s", err, out)
	}
	serve := exec.CommandContext(s.ctx(), suite.bin, "serve")
	serve.Env = s.env
	if out, err := serve.CombinedOutput(); err == nil || !strings.Contains(string(out), "neither an API token nor a JWT secret") {
		t.Errorf("a server that nobody could use started: %v: %s", err, out)
	}
}
