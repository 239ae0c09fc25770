package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestNetworkPolicy: a live run's network is changed under its feet, by the API
// and while the server dies; what it asks for is let through or refused
// accordingly, each connection is recorded once, and refusals are events.
func TestNetworkPolicy(t *testing.T) {
	s := prepare(t)
	site := newNetworkSite(t, t.TempDir())
	s.env = append(s.env, "STROMBOLI_EGRESS_ALLOW="+site.host())
	s.up()
	ask := bash("until curl -s --max-time 5 http://" + site.host() + "/hello; do echo refused; sleep 0.1; done; echo")
	// The agent waits until the file is there, then asks until it is answered.
	wait := func(name string) modelstub.Step {
		return bash("until [ -e /workspace/" + name + " ]; do sleep 0.05; done")
	}
	in := spec(ask, wait("closed"), bash("curl -s --max-time 5 http://"+site.host()+"/hello; curl -sS http://10.9.9.9/ | tail -1"), wait("open"), ask, text("done"))
	in.Network = stromboli.Network{Mode: stromboli.NetworkOpen, Deny: []string{"denied.example"}}
	id := s.submit(t, in)
	said := func(text string) func(stromboli.Event) bool {
		return func(e stromboli.Event) bool {
			return e.Type == stromboli.EventOutput && strings.Contains(string(e.Data), "tool_result") && strings.Contains(string(e.Data), text)
		}
	}
	s.waitEvent(t, id, "the first answer", said("hello to"))
	job, err := s.c.Job(s.ctx(), id)
	if err != nil {
		t.Fatal(err)
	}
	session := job.SessionID
	touch := func(name string) {
		if err := os.WriteFile(filepath.Join(s.data, "sessions", session, "workspace", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	got, err := s.c.SetNetwork(s.ctx(), id, stromboli.Network{Mode: stromboli.NetworkModel})
	if err != nil || got.Mode != stromboli.NetworkModel {
		t.Fatalf("change: %+v, %v", got, err)
	}
	touch("closed")
	s.waitEvent(t, id, "the refusal", said("mode is model"))

	s.kill()
	s.up()
	if job, err := s.c.Job(s.ctx(), id); err != nil || job.Network.Mode != stromboli.NetworkModel {
		t.Fatalf("after the server's death: %+v, %v", job.Network, err)
	}
	if _, err := s.c.SetNetwork(s.ctx(), id, stromboli.Network{}); err != nil {
		t.Fatal(err)
	}
	touch("open")
	if job := s.await(t, id); job.Status != stromboli.Completed || job.Network.Mode != stromboli.NetworkOpen {
		t.Fatalf("%s, %+v", job.Status, job.Network)
	}
	checkRecords(t, s, id)
	if _, err := s.c.SetNetwork(s.ctx(), id, stromboli.Network{}); err == nil {
		t.Error("a finished run's network was changed")
	}
}

// checkRecords looks for what TestNetworkPolicy's run did in its records.
func checkRecords(t *testing.T, s *server, id string) {
	t.Helper()
	page, err := s.c.Egress(s.ctx(), id, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for i, r := range page.Records {
		if r.Seq != int64(i+1) || stromboli.JobID(r.RunID) != id || r.At.IsZero() || time.Since(r.At) > time.Hour {
			t.Errorf("record %d: %+v", i+1, r)
		}
		key := r.Kind + " " + string(r.Verdict)
		if r.Host == "10.9.9.9" {
			key += " private"
		}
		count[key]++
	}
	// The model was asked once per step; the site answered twice.
	if count["model allowed"] != 6 || count["request allowed"] != 2 || count["request denied"] != 1 || count["request denied private"] != 1 || len(page.Records) != 10 {
		t.Errorf("records: %v", count)
	}
	denied := 0
	for _, e := range s.events(id) {
		if e.Type == stromboli.EventEgressDenied {
			denied++
		}
	}
	if denied != 2 {
		t.Errorf("%d events of denied connections", denied)
	}
	half, err := s.c.Egress(s.ctx(), id, 4, 3)
	if err != nil || len(half.Records) != 3 || half.Records[0].Seq != 5 || half.NextAfter != 7 || !half.HasMore {
		t.Errorf("a page: %+v, %v", half, err)
	}
	if _, err := s.c.Egress(context.Background(), "run-00000000000000000000000000", 0, 1); err == nil {
		t.Error("an unknown run has records")
	}
}
