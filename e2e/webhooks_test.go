package e2e_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// hook is one request that a receiver of webhooks got.
type hook struct {
	header http.Header
	body   []byte
}

func (h hook) id() string { return h.header.Get("webhook-id") }

// hooks is a receiver of webhooks on an address that it keeps while it is down.
type hooks struct {
	t    *testing.T
	addr string
	stop func()

	mu   sync.Mutex
	got  []hook
	hold chan struct{} // requests wait until it is closed, or their sender is gone
}

func newHooks(t *testing.T) *hooks {
	t.Helper()
	h := &hooks{t: t, addr: "127.0.0.1:0"}
	h.up()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *hooks) up() {
	h.t.Helper()
	ln, err := new(net.ListenConfig).Listen(h.t.Context(), "tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	h.stop = sync.OnceFunc(func() {
		_ = srv.Close()
		<-done
	})
}

// ServeHTTP takes a webhook.
func (h *hooks) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	h.got = append(h.got, hook{r.Header.Clone(), body})
	hold := h.hold
	h.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
}

// of are the requests about a job.
func (h *hooks) of(job string) []hook {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []hook
	for _, got := range h.got {
		if strings.Contains(string(got.body), `"job_id":"`+job+`"`) {
			all = append(all, got)
		}
	}
	return all
}

func (h *hooks) holding(hold chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hold = hold
}

const hookToken = "notForTheLog"

func (h *hooks) spec(key string, steps ...modelstub.Step) stromboli.RunSpec {
	in := keyed(key, steps...)
	in.WebhookURL = "http://" + h.addr + "/end?token=" + hookToken
	return in
}

// delivery is the one delivery of a job, as the API tells it; nil before the
// job's end.
func (s *server) delivery(t *testing.T, job string) map[string]any {
	t.Helper()
	list, ok := s.send(t, "GET", "/webhooks/deliveries?job_id="+job, "").want(t, 200).object(t)["deliveries"].([]any)
	if !ok || len(list) > 1 {
		t.Fatalf("%d deliveries of %s: %v", len(list), job, list)
	}
	if len(list) == 0 {
		return nil
	}
	d, _ := list[0].(map[string]any)
	return d
}

// hooked waits until a job's webhook is delivered, and checks all that was sent.
func (s *server) hooked(t *testing.T, h *hooks, job string, status stromboli.Status) stromboli.WebhookPayload {
	t.Helper()
	waitFor(t, "the webhook of "+job, func() bool { return s.delivery(t, job)["status"] == "delivered" })
	d, all := s.delivery(t, job), h.of(job)
	var p stromboli.WebhookPayload
	if len(all) == 0 {
		t.Fatalf("nobody got the webhook of %s: %v", job, d)
	}
	for _, got := range all {
		if got.id() != d["id"] || string(got.body) != string(all[0].body) {
			t.Errorf("%s: the message %s (%s), want %v (%s)", job, got.id(), got.body, d["id"], all[0].body)
		}
		verifyHook(t, got)
	}
	if err := json.Unmarshal(all[0].body, &p); err != nil || p.JobID != job || p.Status != status || p.SessionID == "" {
		t.Errorf("%s: %v: %s, want %s", job, err, all[0].body, status)
	}
	return p
}

func hookSecrets() (newest, older string) {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(canary+"-webhooks-newest")), canary + "-webhooks-older"
}

// verifyHook does what a receiver does, with the standard's library and by the
// contract.
func verifyHook(t *testing.T, h hook) {
	t.Helper()
	newest, older := hookSecrets()
	first, err := standard.NewWebhook(newest)
	if err != nil {
		t.Fatal(err)
	}
	second, err := standard.NewWebhookRaw([]byte(older))
	if err != nil {
		t.Fatal(err)
	}
	for _, wh := range []*standard.Webhook{first, second} {
		if err := wh.Verify(h.body, h.header); err != nil {
			t.Error(err)
		}
	}
	mac := hmac.New(sha256.New, []byte(newest))
	_, _ = mac.Write([]byte(h.header.Get("X-Stromboli-Timestamp") + "." + string(h.body)))
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); h.header.Get("X-Stromboli-Signature") != want {
		t.Errorf("X-Stromboli-Signature is %s, want %s", h.header.Get("X-Stromboli-Signature"), want)
	}
}

func webhookServer(t *testing.T, env ...string) *server {
	t.Helper()
	newest, older := hookSecrets()
	return start(t, append([]string{"STROMBOLI_WEBHOOK_ALLOW=127.0.0.1", "STROMBOLI_WEBHOOK_SIGNING_SECRET=" + newest + "," + older}, env...)...)
}

// TestWebhooks: whichever way a job ends, its webhook is told, signed; who may
// not be told is refused; nothing of the URL but the host is shown.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	s, h := webhookServer(t, "STROMBOLI_RUNS_MAX=4"), newHooks(t)
	stay := bash(stayCommand("webhook-stay"))
	completed := s.submit(t, h.spec("completed", text("all is done")))
	failed := s.submit(t, h.spec("failed", modelstub.Step{Status: 400}))
	crashed := s.submit(t, h.spec("crashed", bash("kill -9 $CLAUDE_PID; sleep 5")))
	cancelled := s.submit(t, h.spec("cancelled", stay))
	pending := s.submit(t, h.spec("pending", text("never said")))
	s.send(t, "DELETE", "/jobs/"+pending, "").want(t, 200)
	s.hooked(t, h, pending, stromboli.Cancelled)
	if p := s.hooked(t, h, completed, stromboli.Completed); p.Output != "all is done" || p.Error != "" || p.Usage == nil || p.Usage.OutputTokens == 0 {
		t.Errorf("%+v", p)
	}
	if p := s.hooked(t, h, failed, stromboli.Failed); p.Error == "" {
		t.Errorf("%+v", p)
	}
	s.hooked(t, h, crashed, stromboli.Crashed)
	s.inTool(t, cancelled)
	s.send(t, "DELETE", "/jobs/"+cancelled, "").want(t, 200)
	s.hooked(t, h, cancelled, stromboli.Cancelled)

	// A job that is lost while the server is away.
	lost := s.submit(t, h.spec("lost", stay))
	box := s.boxOf(t, lost)
	s.kill()
	s.survPodman("rm", "-f", "-t", "0", "stromboli-"+box)
	s.up()
	s.hooked(t, h, lost, stromboli.Crashed)

	// A job without a webhook has nothing to tell, and only async ones may have one.
	plain := s.do(t, spec(text("done")))
	if list := s.send(t, "GET", "/webhooks/deliveries?job_id="+plain.ID, "").want(t, 200).object(t)["deliveries"]; len(list.([]any)) != 0 {
		t.Errorf("deliveries of a job without a webhook: %v", list)
	}
	for _, path := range []string{"/run", "/run/stream"} {
		s.send(t, "POST", path, `{"prompt":"x","webhook_url":"https://hooks.example.com/"}`).refused(t, 400, "invalid_request", "webhook_url")
	}
	s.send(t, "POST", "/run/async", `{"prompt":"x","webhook_url":"http://10.0.0.1/?token=`+hookToken+`"}`).refused(t, 400, "invalid_request", "webhook_url")

	d := s.delivery(t, completed)
	if d["host"] != h.addr || d["attempts"] != 1.0 || d["last_status"] != 200.0 || d["finished_at"] == nil {
		t.Errorf("%v", d)
	}
	id, _ := d["id"].(string)
	s.send(t, "POST", "/webhooks/deliveries/"+id+"/redeliver", "").want(t, 200)
	waitFor(t, "the redelivery", func() bool { return len(h.of(completed)) == 2 })
	s.hooked(t, h, completed, stromboli.Completed)
	s.send(t, "POST", "/webhooks/deliveries/msg-none/redeliver", "").refused(t, 404, "not_found", "")
	if all := s.send(t, "GET", "/webhooks/deliveries", "").want(t, 200); strings.Contains(string(all.body), hookToken) {
		t.Errorf("the list tells the URL: %s", all.body)
	}
	if strings.Contains(s.log.tail(1<<30), hookToken) {
		t.Error("the log tells a webhook's URL")
	}
}

// TestWebhookKills: a message survives kill -9 at the run's end, while its
// receiver is away, and during an attempt: at least once, one id, one body.
func TestWebhookKills(t *testing.T) {
	t.Parallel()
	s, h := webhookServer(t), newHooks(t)

	hold := make(chan struct{})
	h.holding(hold)
	job := s.submit(t, h.spec("attempt", text("done")))
	waitFor(t, "the first attempt", func() bool { return len(h.of(job)) == 1 })
	if d := s.delivery(t, job); d["status"] != "sending" {
		t.Errorf("%v", d)
	} else {
		s.send(t, "POST", "/webhooks/deliveries/"+d["id"].(string)+"/redeliver", "").refused(t, 409, "conflict", "")
	}
	s.kill()
	h.holding(nil)
	close(hold)
	s.up()
	s.hooked(t, h, job, stromboli.Completed)
	if n := len(h.of(job)); n != 2 {
		t.Errorf("%d attempts", n)
	}

	h.stop()
	job = s.submit(t, h.spec("away", text("done")))
	s.await(t, job)
	s.kill() // before, during or after an attempt that fails
	h.up()
	s.up()
	s.hooked(t, h, job, stromboli.Completed)

	for i := range 2 {
		job = s.submit(t, h.spec("end", text("done")))
		s.await(t, job) // returns with the event of the transaction that ends the run
		<-time.After(time.Duration(i) * 500 * time.Microsecond)
		s.kill()
		sent := len(h.of(job))
		s.up()
		s.hooked(t, h, job, stromboli.Completed)
		t.Logf("killed after %d attempts of %d", sent, len(h.of(job)))
	}
}
