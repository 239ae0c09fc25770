package runner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// network is what an egress process knows, which outlives servers. Each sandbox
// has made one connection when it is registered, and makes a last one that was
// denied when it is closed.
type network struct {
	mu    sync.Mutex
	boxes map[string]*connections
	down  bool
}

type connections struct {
	door    sandbox.Door
	last    int64
	unread  []stromboli.EgressRecord
	closed  bool
	changed chan struct{}
}

func (n *network) box(id string) *connections {
	if n.boxes == nil {
		n.boxes = map[string]*connections{}
	}
	if n.boxes[id] == nil {
		n.boxes[id] = &connections{changed: make(chan struct{})}
	}
	return n.boxes[id]
}

func (c *connections) connect(host string, verdict stromboli.EgressVerdict) {
	c.last++
	c.unread = append(c.unread, stromboli.EgressRecord{Seq: c.last, Host: host, Port: 443, Verdict: verdict})
	close(c.changed)
	c.changed = make(chan struct{})
}

// connect adds a record to the sandbox of a run.
func (n *network) connect(sandboxID, host string, verdict stromboli.EgressVerdict) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.box(sandboxID).connect(host, verdict)
}

func (n *network) reach(sandboxID string) stromboli.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.box(sandboxID).door.Reach.Network
}

func (n *network) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

var errNoEgress = errors.New("egress is not there")

// Add implements sandbox.Egress.
func (n *network) Add(_ context.Context, d sandbox.Door) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.box(d.ID)
	first := c.door.ID == ""
	c.door = d
	if first {
		c.connect("first", stromboli.EgressAllowed)
	}
	if n.down {
		return errNoEgress
	}
	return nil
}

// Remove implements sandbox.Egress.
func (n *network) Remove(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.boxes, id)
	return nil
}

// Close implements runner.Connections.
func (n *network) Close(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return errNoEgress
	}
	if c := n.box(id); !c.closed {
		c.closed = true
		c.connect("last", stromboli.EgressDenied)
	}
	return nil
}

// Spans implements runner.Connections.
func (*network) Spans(context.Context, string) ([][]byte, error) {
	return [][]byte{[]byte("spans")}, nil
}

// Records implements runner.Connections.
func (n *network) Records(ctx context.Context, id string, after int64, limit int, wait time.Duration) ([]stromboli.EgressRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		n.mu.Lock()
		c := n.box(id)
		for len(c.unread) > 0 && c.unread[0].Seq <= after {
			c.unread = c.unread[1:]
		}
		records, changed, down, closed := slices.Clone(c.unread[:min(limit, len(c.unread))]), c.changed, n.down, c.closed
		n.mu.Unlock()
		switch {
		case down:
			return nil, errNoEgress
		case len(records) > 0 || closed:
			return records, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// recorded are the hosts of a run's stored records, in order.
func (l *life) recorded(id string) []string {
	l.w.t.Helper()
	records, err := l.Egress(context.Background(), me(), id, 0, 10_000)
	must(l.w.t, err)
	var hosts []string
	for i, r := range records {
		if r.Seq != int64(i+1) {
			l.w.t.Errorf("record %d of %s has the number %d", i+1, id, r.Seq)
		}
		hosts = append(hosts, r.Host)
	}
	return hosts
}

// sandboxOf waits for a run's agent and tells its sandbox.
func (l *life) sandboxOf(id string) string {
	l.w.t.Helper()
	l.until(id, stromboli.PhaseGenerating)
	return l.get(id).SandboxID
}

// touch makes a file in a run's home.
func (l *life) touch(run stromboli.Run, name string) {
	l.w.t.Helper()
	must(l.w.t, os.WriteFile(filepath.Join(l.w.data, "sessions", run.SessionID, "home", name), nil, 0o600))
}

// TestRecordsAreStored: those that came while the run went on, and the last
// ones, before the run's end; a denied one is an event too, up to a number.
func TestRecordsAreStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`until [ -e "$HOME/go" ]; do sleep 0.02; done; result ok`)
	box := l.sandboxOf(run.ID)
	for i := range 150 {
		w.connect(box, fmt.Sprint("bad", i), stromboli.EgressDenied)
	}
	l.touch(run, "go")
	done := l.wait(run.ID)
	hosts := l.recorded(run.ID)
	if done.Status != stromboli.Completed || len(hosts) != 152 || hosts[0] != "first" || hosts[151] != "last" {
		t.Fatalf("%s, %d records: %v", done.Status, len(hosts), hosts)
	}
	count := map[stromboli.EventType]int{}
	events, err := l.store.Events(context.Background(), run.ID, 0, 1000)
	must(t, err)
	for _, e := range events {
		count[e.Type]++
	}
	if count[stromboli.EventEgressDenied] != 100 || count[stromboli.EventWarning] != 1 {
		t.Errorf("%d events of denied connections, %d warnings", count[stromboli.EventEgressDenied], count[stromboli.EventWarning])
	}
}

// TestEgressAwayAtTheEnd: a run ends without an egress too, and says what is
// missing.
func TestEgressAwayAtTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`until [ -e "$HOME/go" ]; do sleep 0.02; done; result ok`)
	l.sandboxOf(run.ID)
	w.setDown(true)
	l.touch(run, "go")
	done := l.wait(run.ID)
	if done.Status != stromboli.Completed || len(done.Outcome.Warnings) != 1 || done.Outcome.Warnings[0].Code != "egress_records_incomplete" ||
		strings.Contains(done.Outcome.Warnings[0].Message, errNoEgress.Error()) { // what failed inside is for the log
		t.Fatalf("%s, %+v", done.Status, done.Outcome.Warnings)
	}
}

// TestNetworkChanges: the present one is what a sandbox gets, is changed on a
// living one, and what the next server gives it.
func TestNetworkChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	ctx := context.Background()
	list := stromboli.Network{Mode: stromboli.NetworkAllowlist, Allow: []string{"a.example"}}
	run := l.submit(`until [ -e "$HOME/go" ]; do sleep 0.02; done; result ok`, func(s *stromboli.RunSpec) { s.Network = list })
	box := l.sandboxOf(run.ID)
	if got := w.reach(box); got.Mode != list.Mode || got.Allow[0] != "a.example" {
		t.Errorf("at first: %+v", got)
	}
	queued := l.submit(`result ok`)
	none := stromboli.Network{Mode: stromboli.NetworkNone}
	for _, id := range []string{run.ID, queued.ID} {
		if got, err := l.SetNetwork(ctx, me(), id, none); err != nil || got.Mode != none.Mode {
			t.Fatalf("change of %s: %+v, %v", id, got, err)
		}
	}
	if got := w.reach(box); got.Mode != none.Mode {
		t.Errorf("changed: %+v", got)
	}
	for what, bad := range map[string]struct {
		id   string
		n    stromboli.Network
		want stromboli.Code
	}{
		"unknown mode": {run.ID, stromboli.Network{Mode: "wide"}, stromboli.Invalid},
		"no such run":  {"run-none", none, stromboli.NotFound},
		"a bridge":     {run.ID, stromboli.Network{Mode: stromboli.NetworkBridge}, stromboli.Invalid},
	} {
		if _, err := l.SetNetwork(ctx, me(), bad.id, bad.n); !errors.Is(err, bad.want) {
			t.Errorf("%s: %v, want %s", what, err, bad.want)
		}
	}
	if _, err := l.SetNetwork(ctx, stromboli.Principal{Tenant: "other"}, run.ID, none); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("another tenant's: %v", err)
	}

	// A change that egress was not told of, because the server died in between.
	l.stop()
	w.mu.Lock()
	w.box(box).door.Reach.Network = list
	w.mu.Unlock()
	l = w.start(options{max: 1})
	l.eventually("the next server gives the sandbox its network", func() bool { return w.reach(box).Mode == none.Mode })
	l.touch(run, "go")
	if done := l.wait(run.ID); done.Status != stromboli.Completed || done.Network.Mode != none.Mode {
		t.Errorf("%s, %+v", done.Status, done.Network)
	}
	if done := l.wait(queued.ID); done.Status != stromboli.Completed || done.Network.Mode != none.Mode {
		t.Errorf("the queued one: %s, %+v", done.Status, done.Network)
	}
	if _, err := l.SetNetwork(ctx, me(), run.ID, none); !errors.Is(err, stromboli.Conflict) {
		t.Errorf("after the end: %v", err)
	}
}

var _ runner.Connections = (*network)(nil)
