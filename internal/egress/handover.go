package egress

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	// followEvery is how often a process that drains asks its successor for the
	// rules that hold by now.
	followEvery = 500 * time.Millisecond
	// deliverFor bounds the attempts to give a successor one record. One that is
	// lost is in the audit as begun, and gets a record that says so.
	deliverFor = 10 * time.Second
)

// delivery is a record that a process which drains gives to its successor.
type delivery struct {
	Open   int64                  `json:"open"`
	Record stromboli.EgressRecord `json:"record"`
}

// handover is the end of a process that goes on with what is in flight while a
// successor serves the sandboxes: the successor gets the records, and its rules
// hold here too.
type handover struct {
	g         *gateway
	successor *Client
	ctx       context.Context //nolint:containedctx // the drain's life
	pending   sync.WaitGroup
}

// handOver begins a handover; no door listens any more.
func (g *gateway) handOver(ctx context.Context) *handover {
	h := &handover{g: g, successor: NewClient(g.dir), ctx: ctx}
	for _, d := range g.list() {
		id := d.id()
		d.audit.handOver(func(open int64, rec stromboli.EgressRecord) { //nolint:contextcheck // deliver's outlives the drain
			h.pending.Go(func() { h.deliver(id, delivery{open, rec}) })
		})
	}
	return h
}

func (h *handover) deliver(id string, d delivery) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), deliverFor)
	defer cancel()
	for {
		err := h.successor.call(ctx, http.MethodPost, "/sandboxes/"+url.PathEscape(id)+"/records", d)
		if err == nil || errors.Is(err, ErrRejected) {
			return
		}
		if !sleep(ctx, 100*time.Millisecond) {
			h.g.log.Warn("egress: a record could not be handed over", "sandbox", id, "error", err)
			return
		}
	}
}

// follow keeps to the successor's rules until the drain is over.
func (h *handover) follow() {
	for sleep(h.ctx, followEvery) {
		for _, d := range h.g.list() {
			n, err := h.successor.network(h.ctx, d.id())
			switch {
			case errors.Is(err, ErrRejected): // removed or closed
				d.close()
			case err != nil: // it isn't there yet, or any more
			default:
				if r, err := compileRules(n); err == nil {
					d.mu.Lock()
					r.bound = d.rules.bound // secrets are the successor's to tell, and are not asked for
					d.govern(r)
					d.mu.Unlock()
				}
			}
		}
	}
}
