package webhook

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// TestRetries: the same message, under the same id, until the receiver takes it.
func TestRetries(t *testing.T) {
	w := newWorld(t)
	rc := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(map[int]int{1: 500, 2: 429}[n] + map[bool]int{true: 204}[n > 2])
	})
	w.start()
	run := w.owe(rc.URL + "/end?token=hidden")
	d := w.until(run, stromboli.DeliveryDelivered)
	hits := rc.got()
	if d.Attempts != 3 || d.LastStatus != 204 || d.LastError != "" || len(hits) != 3 {
		t.Fatalf("%+v after %d requests", d, len(hits))
	}
	for _, h := range hits {
		if h.id != d.ID || string(h.body) != string(hits[0].body) || h.header.Get("Content-Type") != "application/json" || h.header.Get("webhook-timestamp") == "" {
			t.Errorf("%s %s %v", h.id, h.body, h.header)
		}
		if h.header.Get("webhook-signature") != "" || h.header.Get("X-Stromboli-Signature") != "" {
			t.Error("signed without a secret")
		}
	}
	if want := `{"job_id":"` + stromboli.JobID(run) + `","status":"completed","output":"done <&>","session_id":"session-1` + run + `"}`; string(hits[0].body) != want {
		t.Errorf("the body is %s, want %s", hits[0].body, want)
	}
	if log := w.log.String(); strings.Contains(log, "hidden") || !strings.Contains(log, d.ID) {
		t.Errorf("the log: %s", log)
	}
}

// TestGivenUp: at the schedule's end, and when the receiver says that it is
// gone; and then it can be sent again.
func TestGivenUp(t *testing.T) {
	w := newWorld(t)
	var mended sync.Map
	gone := newReceiver(t, status(410))
	broken := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		if _, ok := mended.Load("yes"); !ok {
			w.WriteHeader(404)
		}
	})
	var told sync.Map
	s, _ := w.start(func(c *Config) {
		c.Attempted = func(then stromboli.DeliveryStatus) { told.Store(then, true) }
	})
	d := w.until(w.owe(gone.URL), stromboli.DeliveryDead)
	if d.Attempts != 1 || d.LastStatus != 410 || d.LastError != "the receiver answered 410" {
		t.Errorf("%+v", d)
	}
	run := w.owe(broken.URL)
	d = w.until(run, stromboli.DeliveryDead)
	if d.Attempts != 3 || d.LastError != "the receiver answered 404" {
		t.Errorf("%+v", d)
	}
	if _, err := s.Redeliver(t.Context(), stromboli.Principal{Tenant: "other"}, d.ID); stromboli.CodeOf(err) != stromboli.NotFound {
		t.Errorf("another tenant's: %v", err)
	}
	mended.Store("yes", true)
	again, err := s.Redeliver(t.Context(), stromboli.Principal{Tenant: "default"}, d.ID)
	if err != nil || again.Status != stromboli.DeliveryPending {
		t.Fatalf("%+v, %v", again, err)
	}
	d = w.until(run, stromboli.DeliveryDelivered)
	if hits := broken.got(); len(hits) != 4 || hits[3].id != hits[0].id || d.Attempts != 4 {
		t.Errorf("%+v, %d requests", d, len(hits))
	}
	list, _, err := s.Deliveries(t.Context(), stromboli.Principal{Tenant: "other"}, stromboli.DeliveryFilter{Tenant: "default"})
	if err != nil || len(list) != 0 {
		t.Errorf("another tenant sees %d, %v", len(list), err)
	}
	for _, then := range []stromboli.DeliveryStatus{stromboli.DeliveryDead, stromboli.DeliveryPending, stromboli.DeliveryDelivered} {
		if _, ok := told.Load(then); !ok {
			t.Errorf("no attempt was told of after which it is %s", then)
		}
	}
}

// TestTargets: what may be connected to, and what the deliveries' owner is told
// of what may not.
func TestTargets(t *testing.T) {
	inner := newReceiver(t, nil)
	port := inner.URL[strings.LastIndexByte(inner.URL, ':')+1:]
	redirect := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inner.URL, http.StatusTemporaryRedirect)
	})
	closed := newReceiver(t, nil)
	closed.Close()
	rude := newReceiver(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = conn.Write([]byte("220 not HTTP\r\n"))
			_ = conn.Close()
		}
	})
	tls := newReceiver(t, nil)
	secure := httptestTLS(t, tls)
	w := newWorld(t)
	const refused = "the target is not public, and STROMBOLI_WEBHOOK_ALLOW doesn't permit it"
	for _, tt := range []struct {
		name, allow, url string
		want             string // error; "": delivered
	}{
		{"loopback", "", inner.URL, refused},
		{"a name of loopback", "", "http://localhost:" + port, refused},
		{"another port", "127.0.0.1:1", inner.URL, refused},
		{"another name", "hooks.example", "http://localhost:" + port, refused},
		{"IPv4 in IPv6", "", "http://[::ffff:127.0.0.1]:" + port, refused},
		{"unspecified", "", "http://0.0.0.0:" + port, refused},
		{"metadata", "127.0.0.0/8", "http://169.254.169.254/", refused},
		{"by address", "127.0.0.1", inner.URL, ""},
		{"by range and port", "127.0.0.0/8:" + port, inner.URL, ""},
		{"by name", "localhost:" + port, "http://LOCALHOST:" + port, ""},
		{"a redirect", "127.0.0.1", redirect.URL, "the receiver answered 307, and redirects are not followed"},
		{"nobody", "127.0.0.1", closed.URL, "the receiver refused the connection"},
		{"not HTTP", "127.0.0.1", rude.URL, "the receiver did not answer as HTTP says"},
		{"no TLS", "127.0.0.1", strings.Replace(inner.URL, "http:", "https:", 1), "no TLS connection to the receiver could be made"},
		{"a certificate of nobody's", "127.0.0.1", secure, "the receiver's certificate is not accepted: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var allow []string
			if tt.allow != "" {
				allow = []string{tt.allow}
			}
			hosts, _, err := policy.ParseHosts(allow)
			if err != nil {
				t.Fatal(err)
			}
			before := len(inner.got())
			_, stop := w.start(func(c *Config) { c.Allow, c.Schedule = hosts, []time.Duration{} })
			defer stop()
			run := w.owe(tt.url + "?token=hidden")
			want, hits := stromboli.DeliveryDelivered, before+1
			if tt.want != "" {
				want, hits = stromboli.DeliveryDead, before
			}
			d := w.until(run, want)
			if !strings.HasPrefix(d.LastError, tt.want) || tt.want == "" && d.LastError != "" || len(inner.got()) != hits {
				t.Errorf("%+v; the inner server has got %d requests", d, len(inner.got())-before)
			}
			if strings.Contains(d.LastError, "127.0.0") && tt.want == refused || strings.Contains(w.log.String(), "hidden") {
				t.Errorf("told: %q; the log: %s", d.LastError, w.log.String())
			}
		})
	}
}

// TestSlowReceivers hold up none but their own deliveries, and no more attempts
// are made to one at a time than there may be.
func TestSlowReceivers(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var mu sync.Mutex
	var now, most int
	slow := newReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		mu.Lock()
		now--
		mu.Unlock()
	})
	fast := newReceiver(t, nil)
	var runs, quick []string
	for range 20 {
		runs = append(runs, w.owe(slow.URL))
	}
	w.start(func(c *Config) { c.Timeout = time.Minute })
	w.wait("the slow receiver to be busy", func() bool { return len(slow.got()) == perHost })
	for range 20 {
		quick = append(quick, w.owe(fast.URL))
	}
	for _, run := range quick {
		w.until(run, stromboli.DeliveryDelivered)
	}
	if n := len(slow.got()); n != perHost {
		t.Errorf("%d attempts at the slow receiver", n)
	}
	close(release)
	for _, run := range runs {
		w.until(run, stromboli.DeliveryDelivered)
	}
	if most != perHost {
		t.Errorf("%d attempts at a time", most)
	}
	ids := map[string]bool{}
	for _, h := range slow.got() {
		ids[h.id] = true
	}
	if len(ids) != 20 || len(slow.got()) != 20 {
		t.Errorf("%d messages in %d requests", len(ids), len(slow.got()))
	}
}

// TestTimeout: a receiver that doesn't answer, or doesn't end its answer.
func TestTimeout(t *testing.T) {
	w := newWorld(t)
	mute := newReceiver(t, func(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	endless := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	w.start(func(c *Config) { c.Timeout, c.Schedule = 200*time.Millisecond, []time.Duration{} })
	if d := w.until(w.owe(mute.URL), stromboli.DeliveryDead); d.LastError != "the receiver did not answer in time" || d.LastStatus != 0 {
		t.Errorf("%+v", d)
	}
	if d := w.until(w.owe(endless.URL), stromboli.DeliveryDelivered); d.LastStatus != 200 {
		t.Errorf("%+v", d)
	}
}

// TestStop: an attempt that is being made at the stop is broken off, or ends in
// time; the next sender makes it again under the same id, and the try counts
// only once.
func TestStop(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{}, 10)
	rc := newReceiver(t, func(n int, _ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		if n == 1 {
			<-r.Context().Done()
		}
	})
	run := w.owe(rc.URL)
	_, stop := w.start(func(c *Config) { c.Timeout = time.Minute })
	<-asked
	began := time.Now()
	stop()
	if took := time.Since(began); took > lastWords+recordTime {
		t.Errorf("the stop took %s", took)
	}
	if d := w.delivery(run); d.Status != stromboli.DeliveryPending || d.Attempts != 1 || d.LastError != "" {
		t.Errorf("after the stop: %+v", d)
	}
	w.start()
	d := w.until(run, stromboli.DeliveryDelivered)
	if hits := rc.got(); len(hits) != 2 || hits[0].id != hits[1].id || d.Attempts != 2 {
		t.Errorf("%+v, %d requests", d, len(hits))
	}
}

// brokenOutbox can't record for a while.
type brokenOutbox struct {
	Outbox
	mu    sync.Mutex
	fails int
}

func (b *brokenOutbox) FinishDelivery(ctx context.Context, id string, attempt int, r stromboli.DeliveryResult) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fails > 0 {
		b.fails--
		return stromboli.Errorf(stromboli.StorageFull, "the disk is full")
	}
	return b.Outbox.FinishDelivery(ctx, id, attempt, r)
}

// TestRecordFails: while the store can't say that a message was delivered it
// isn't sent again.
func TestRecordFails(t *testing.T) {
	w := newWorld(t)
	rc := newReceiver(t, nil)
	w.start(func(c *Config) { c.Outbox = &brokenOutbox{Outbox: w.store, fails: 1} })
	w.until(w.owe(rc.URL), stromboli.DeliveryDelivered)
	if n := len(rc.got()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestJudge: what follows from each answer.
func TestJudge(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	s := &Sender{cfg: Config{Schedule: DefaultSchedule(), Now: func() time.Time { return now }}}
	at := func(tries int, o outcome) (stromboli.DeliveryStatus, time.Duration) {
		r := s.judge(stromboli.ClaimedDelivery{Tries: tries}, o)
		if r.NextAt.IsZero() {
			return r.Status, 0
		}
		return r.Status, r.NextAt.Sub(now)
	}
	var shortest, longest time.Duration
	for i, wait := range DefaultSchedule() {
		var waits []time.Duration
		for range 200 {
			status, d := at(i+1, outcome{status: 503})
			if status != stromboli.DeliveryPending || d < wait*8/10 || d > wait*12/10+1 {
				t.Fatalf("after %d tries: %s, %s", i+1, status, d)
			}
			waits = append(waits, d)
		}
		if slices.Max(waits)-slices.Min(waits) < wait/10 {
			t.Errorf("after %d tries there is no jitter: %s to %s", i+1, slices.Min(waits), slices.Max(waits))
		}
		shortest, longest = shortest+wait*8/10, longest+wait
	}
	if longest < 23*time.Hour || longest > 25*time.Hour || shortest < 18*time.Hour {
		t.Errorf("the schedule takes %s", longest)
	}
	if status, _ := at(len(DefaultSchedule())+1, outcome{status: 500}); status != stromboli.DeliveryDead {
		t.Errorf("after the schedule: %s", status)
	}
	if status, _ := at(99, outcome{status: 500}); status != stromboli.DeliveryDead { // after many deaths of servers
		t.Errorf("long after the schedule: %s", status)
	}
	for _, code := range []int{200, 201, 202, 204, 299} {
		if status, _ := at(1, outcome{status: code}); status != stromboli.DeliveryDelivered {
			t.Errorf("%d: %s", code, status)
		}
	}
	for _, code := range []int{101, 199, 300, 304, 400, 401, 404, 429, 500, 599} {
		if status, _ := at(1, outcome{status: code}); status != stromboli.DeliveryPending {
			t.Errorf("%d: %s", code, status)
		}
	}
	if status, wait := at(1, outcome{status: 429, retryAfter: 10 * time.Minute}); status != stromboli.DeliveryPending || wait != 10*time.Minute {
		t.Errorf("Retry-After: %s, %s", status, wait)
	}
	if status, _ := at(1, outcome{status: 200, err: fmt.Errorf("x")}); status != stromboli.DeliveryPending {
		t.Errorf("an error: %s", status)
	}
}

// TestRetryAfter: a receiver may ask for more time, not for any amount.
func TestRetryAfter(t *testing.T) {
	w := newWorld(t)
	rc := newReceiver(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", r.URL.Path[1:])
		w.WriteHeader(503)
	})
	w.start()
	for path, want := range map[string]time.Duration{"600": 10 * time.Minute, "99999999999999": time.Hour, "3601": time.Hour} {
		run := w.owe(rc.URL + "/" + path)
		w.wait("the answer", func() bool { d := w.delivery(run); return d.LastStatus == 503 && d.Status == stromboli.DeliveryPending })
		d := w.delivery(run)
		if wait := d.NextAt.Sub(d.UpdatedAt); wait < want-time.Second || wait > want+time.Second || d.Attempts != 1 {
			t.Errorf("%s: it waits %s: %+v", path, wait, d)
		}
	}
}
