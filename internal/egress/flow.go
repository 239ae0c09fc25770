package egress

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// The kinds of connections in the audit.
const (
	kindTunnel  = "connect"
	kindBinding = "binding" // a tunnel that is opened here
	kindRequest = "request"
	kindModel   = "model"
)

// cutWait bounds the wait for a connection that is being cut to end.
const cutWait = 5 * time.Second

// flow is one connection of a sandbox, or one request, from the verdict to its
// record.
type flow struct {
	door *door
	to   target // not of a model request
	open int64  // of the audit
	ctx  context.Context
	cut  context.CancelCauseFunc
	done chan struct{}
	from time.Time // when it began, on the monotonic clock

	// settings hold for a request to the model from its beginning, and endpoint
	// is whom it is for.
	settings *settings
	endpoint *endpoint

	rec  stromboli.EgressRecord // the handler's own
	peer netip.Addr             // guarded by door.mu: what was dialled
}

// errCut is the cause of the end of a flow that new rules don't permit.
var errCut = errors.New("cut: the run's network was changed")

// begin judges a connection. A refusal is in the audit when it returns, and
// the error is a refusedError; what is permitted must come to end. The flow's
// context ends with ctx, and when new rules no more permit it.
func (d *door) begin(ctx context.Context, kind string, to target) (*flow, error) {
	if err := d.audit.room(ctx); err != nil {
		return nil, err
	}
	rec := stromboli.EgressRecord{RunID: d.runID(), At: time.Now().UTC(), Kind: kind, Host: clip(to.host()), Port: int(to.port)}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.ctx.Err()
	if err == nil {
		err = d.rules.permit(kind, to)
	}
	if err != nil {
		deny(&rec, err)
		d.audit.end(0, rec)
		return nil, err
	}
	f := &flow{door: d, to: to, rec: rec, done: make(chan struct{}), from: time.Now()}
	f.rec.Verdict = stromboli.EgressAllowed
	f.open = d.audit.begin(f.rec)
	f.ctx, f.cut = context.WithCancelCause(ctx)
	d.flows[f] = struct{}{}
	return f, nil
}

// refused records a target that can't be read.
func (d *door) refused(ctx context.Context, kind, text string, err error) {
	if d.audit.room(ctx) != nil {
		return
	}
	rec := stromboli.EgressRecord{RunID: d.runID(), At: time.Now().UTC(), Kind: kind, Host: clip(text)}
	deny(&rec, err)
	d.audit.end(0, rec)
}

// deny makes a record tell of a refusal. It may say more than the sandbox was
// told.
func deny(rec *stromboli.EgressRecord, err error) {
	rec.Verdict, rec.Why = stromboli.EgressDenied, clip(err.Error())
	if refused, ok := errors.AsType[*refusedError](err); ok {
		rec.Why = clip(refused.cause.Error())
	}
}

func (r *rules) permit(kind string, to target) error {
	if kind == kindModel {
		return r.judgeModel()
	}
	if err := r.judge(to); err != nil || kind != kindBinding {
		return err
	}
	_, err := r.binding(to)
	return err
}

// reached says what was dialled, and reports whether the rules that hold by now
// permit it.
func (f *flow) reached(peer netip.Addr) error {
	f.door.mu.Lock()
	defer f.door.mu.Unlock()
	f.peer = peer
	return f.door.rules.permits(f)
}

// permits reports whether a flow may go on.
func (r *rules) permits(f *flow) error {
	if err := r.permit(f.rec.Kind, f.to); err != nil {
		return err
	}
	if f.rec.Kind == kindModel || !f.peer.IsValid() {
		return nil
	}
	return r.judgeAddr(f.peer, f.to.port)
}

// failed says why there was no connection.
func (f *flow) failed(err error) {
	if errors.Is(err, errRefused) {
		deny(&f.rec, err)
		return
	}
	f.rec.Verdict, f.rec.Why = stromboli.EgressFailed, clip(describe(err))
}

// end writes the flow's record.
func (f *flow) end() {
	if errors.Is(context.Cause(f.ctx), errCut) {
		f.rec.Why = errCut.Error()
	}
	f.cut(nil)
	f.rec.DurationMS = time.Since(f.from).Milliseconds()
	f.door.mu.Lock()
	delete(f.door.flows, f)
	if f.peer.IsValid() {
		f.rec.Address = policy.Embedded(f.peer).String()
	}
	f.door.mu.Unlock()
	f.door.audit.end(f.open, f.rec)
	close(f.done)
}

// govern puts new rules in force and returns the flows that they cut.
func (d *door) govern(r *rules) []*flow {
	d.rules = r
	var cut []*flow
	for f := range d.flows {
		if r.permits(f) != nil {
			f.cut(errCut)
			cut = append(cut, f)
		}
	}
	return cut
}

// awaitEnd waits until flows that were cut have ended.
func awaitEnd(flows []*flow) {
	limit := time.NewTimer(cutWait)
	defer limit.Stop()
	for _, f := range flows {
		select {
		case <-f.done:
		case <-limit.C:
			return
		}
	}
}
