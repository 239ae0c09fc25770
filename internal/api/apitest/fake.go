// Package apitest has an in-memory stand-in for everything behind the API, to
// test the API and its clients with. It keeps the contracts of api.Runs,
// api.Events and api.System; runs do only what the test says.
package apitest

import (
	"context"
	"encoding/json"
	"iter"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

// Fake implements api.Runs, api.Events and api.System.
type Fake struct {
	// OnSubmit, if set, is called for each new run, without locks held, in a
	// goroutine of Submit's caller.
	OnSubmit func(stromboli.Run)
	// SubmitErr, if set, refuses a submission.
	SubmitErr func(stromboli.Submission) error
	// Unready are the answers of Ready; Sick the parts of Health.
	Unready []string
	Sick    []api.Component
	// Box has the deliveries of webhooks.
	Box Outbox

	mu      sync.Mutex
	order   []string
	runs    map[string]*record
	keys    map[string]string // endpoint and key → run id
	hashes  map[string]string
	subs    []stromboli.Submission
	cancels []stromboli.Reason
}

type record struct {
	run    stromboli.Run
	events []stromboli.Event
	wake   chan struct{} // closed and replaced at each change
}

// New returns an empty fake.
func New() *Fake {
	return &Fake{runs: map[string]*record{}, keys: map[string]string{}, hashes: map[string]string{}}
}

// Submit implements api.Runs.
func (f *Fake) Submit(_ context.Context, p stromboli.Principal, s stromboli.Submission) (stromboli.Run, bool, error) {
	if f.SubmitErr != nil {
		if err := f.SubmitErr(s); err != nil {
			return stromboli.Run{}, false, err
		}
	}
	run, existing, err := f.insert(p, s)
	if err == nil && !existing && f.OnSubmit != nil {
		f.OnSubmit(run)
	}
	return run, existing, err
}

func (f *Fake) insert(p stromboli.Principal, s stromboli.Submission) (stromboli.Run, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	scope := p.Tenant + " " + s.Idempotency.Endpoint + " " + s.Idempotency.Key
	if id, ok := f.keys[scope]; ok && s.Idempotency.Key != "" {
		if f.hashes[scope] != s.Idempotency.Hash {
			return stromboli.Run{}, false, stromboli.Errorf(stromboli.KeyReused, "the key was used with another body")
		}
		return f.runs[id].run, true, nil
	}
	now := time.Now().UTC()
	run := stromboli.Run{
		ID: stromboli.NewRunID(now), Tenant: p.Tenant, Kind: s.Kind, Spec: s.Spec, SessionID: s.Spec.Claude.SessionID,
		Status: stromboli.Running, Phase: stromboli.PhaseStarting, CreatedAt: now, UpdatedAt: now, StartedAt: now,
	}
	if run.SessionID == "" {
		run.SessionID = "00000000-0000-4000-8000-000000000000"
	}
	f.runs[run.ID] = &record{run: run, wake: make(chan struct{})}
	f.order = append(f.order, run.ID)
	if s.Idempotency.Key != "" {
		f.keys[scope], f.hashes[scope] = run.ID, s.Idempotency.Hash
	}
	f.subs = append(f.subs, s)
	f.append(run.ID, stromboli.EventRunCreated, map[string]any{})
	return f.runs[run.ID].run, false, nil
}

// append stores an event; f.mu is held.
func (f *Fake) append(id string, typ stromboli.EventType, data any) {
	b, err := json.Marshal(data)
	if err != nil {
		b = []byte("{}")
	}
	r := f.runs[id]
	r.run.LastSeq++
	r.events = append(r.events, stromboli.Event{Seq: r.run.LastSeq, RunID: id, Type: typ, At: time.Now().UTC(), Data: b})
	close(r.wake)
	r.wake = make(chan struct{})
}

// Append stores an event of a run.
func (f *Fake) Append(id string, typ stromboli.EventType, data any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.append(id, typ, data)
}

// Output stores a line of standard output.
func (f *Fake) Output(id, line string) {
	f.Append(id, stromboli.EventOutput, stromboli.OutputData{Stream: "stdout", Line: line})
}

// Finish ends a run.
func (f *Fake) Finish(id string, o stromboli.Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish(id, o)
}

func (f *Fake) finish(id string, o stromboli.Outcome) {
	r := f.runs[id]
	r.run.Status, r.run.Phase, r.run.Outcome = o.Status, "", o
	r.run.FinishedAt = time.Now().UTC()
	f.append(id, stromboli.EventRunFinished, o)
}

// Get implements api.Runs.
func (f *Fake) Get(_ context.Context, p stromboli.Principal, id string) (stromboli.Run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.runs[id]
	if !ok || r.run.Tenant != p.Tenant {
		return stromboli.Run{}, stromboli.Errorf(stromboli.NotFound, "there is no job %s", stromboli.JobID(id))
	}
	return r.run, nil
}

// List implements api.Runs; a cursor is a number of rows to leave out.
func (f *Fake) List(_ context.Context, p stromboli.Principal, filter stromboli.RunFilter) ([]stromboli.Run, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from := 0
	if filter.Cursor != "" {
		n, err := strconv.Atoi(filter.Cursor)
		if err != nil || n < 0 {
			return nil, "", stromboli.FieldError("cursor", "is not a cursor")
		}
		from = n
	}
	var all []stromboli.Run
	for _, id := range slices.Backward(f.order) {
		if run := f.runs[id].run; run.Tenant == p.Tenant && matches(run, filter) {
			all = append(all, run)
		}
	}
	all = all[min(from, len(all)):]
	if len(all) > filter.Limit {
		return all[:filter.Limit], strconv.Itoa(from + filter.Limit), nil
	}
	return all, "", nil
}

func matches(run stromboli.Run, f stromboli.RunFilter) bool {
	for k, v := range f.Metadata {
		if got, ok := run.Spec.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return (len(f.Kinds) == 0 || slices.Contains(f.Kinds, run.Kind)) &&
		(len(f.Statuses) == 0 || slices.Contains(f.Statuses, run.Status)) &&
		(f.SessionID == "" || f.SessionID == run.SessionID) && !run.CreatedAt.Before(f.Since)
}

// Cancel implements api.Runs; the run ends at once.
func (f *Fake) Cancel(_ context.Context, p stromboli.Principal, id string, reason stromboli.Reason) (stromboli.Run, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.runs[id]
	if !ok || r.run.Tenant != p.Tenant {
		return stromboli.Run{}, stromboli.Errorf(stromboli.NotFound, "there is no job %s", stromboli.JobID(id))
	}
	if r.run.Status.Terminal() {
		return stromboli.Run{}, stromboli.Errorf(stromboli.Conflict, "the job has finished already")
	}
	f.cancels = append(f.cancels, reason)
	r.run.CancelReason = reason
	f.finish(id, stromboli.Outcome{Status: stromboli.Cancelled, Reason: reason})
	return r.run, nil
}

// SetNetwork implements api.Runs; it takes every mode.
func (f *Fake) SetNetwork(_ context.Context, p stromboli.Principal, id string, wish stromboli.Network) (stromboli.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.runs[id]
	switch {
	case !ok || r.run.Tenant != p.Tenant:
		return stromboli.Network{}, stromboli.Errorf(stromboli.NotFound, "there is no job %s", stromboli.JobID(id))
	case r.run.Status.Terminal():
		return stromboli.Network{}, stromboli.Errorf(stromboli.Conflict, "the job has finished already")
	case wish.Mode == "wide":
		return stromboli.Network{}, stromboli.FieldError("network.mode", "is unknown")
	}
	r.run.Network = wish
	return wish, nil
}

// Attestation implements api.Runs: it tells the run's sandbox, once it has ended.
func (f *Fake) Attestation(ctx context.Context, p stromboli.Principal, id string) (stromboli.Attestation, error) {
	run, err := f.Get(ctx, p, id)
	if err == nil && !run.Status.Terminal() {
		err = stromboli.Errorf(stromboli.NotFound, "its agent has not been started")
	}
	return stromboli.Attestation{Version: 1, Sandbox: "sb"}, err
}

// Egress implements api.Runs: each run has three records.
func (f *Fake) Egress(ctx context.Context, p stromboli.Principal, id string, after int64, limit int) ([]stromboli.EgressRecord, error) {
	if _, err := f.Get(ctx, p, id); err != nil {
		return nil, err
	}
	var records []stromboli.EgressRecord
	for seq := after + 1; seq <= 3 && len(records) < limit; seq++ {
		records = append(records, stromboli.EgressRecord{Seq: seq, RunID: id, Kind: "connect", Host: "a.example", Port: 443, Verdict: stromboli.EgressAllowed})
	}
	return records, nil
}

// Cancels lists the reasons of all cancellations so far.
func (f *Fake) Cancels() []stromboli.Reason {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.cancels)
}

// Submissions lists all submissions that made a run.
func (f *Fake) Submissions() []stromboli.Submission {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.subs)
}

// Follow implements api.Events.
func (f *Fake) Follow(ctx context.Context, id string, after int64) iter.Seq2[stromboli.Event, error] {
	return func(yield func(stromboli.Event, error) bool) {
		for {
			events, wake := f.after(id, after)
			for _, ev := range events {
				if !yield(ev, nil) || ev.Type == stromboli.EventRunFinished {
					return
				}
				after = ev.Seq
			}
			select {
			case <-wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (f *Fake) after(id string, after int64) ([]stromboli.Event, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.runs[id]
	return slices.Clone(r.events[min(after, int64(len(r.events))):]), r.wake
}

// Events implements api.Events.
func (f *Fake) Events(_ context.Context, id string, after int64, limit int) ([]stromboli.Event, error) {
	events, _ := f.after(id, after)
	return events[:min(limit, len(events))], nil
}

// EventData implements api.Events.
func (f *Fake) EventData(_ context.Context, id string, seq int64) (json.RawMessage, error) {
	events, _ := f.after(id, seq-1)
	if len(events) == 0 {
		return nil, stromboli.Errorf(stromboli.NotFound, "there is no event %d", seq)
	}
	return events[0].Data, nil
}

// Health implements api.System.
func (f *Fake) Health(context.Context) []api.Component {
	return append([]api.Component{{Name: "podman"}}, f.Sick...)
}

// Ready implements api.System.
func (f *Fake) Ready(context.Context) []string { return f.Unready }

// Version implements api.System.
func (f *Fake) Version(context.Context) api.Version {
	return api.Version{Version: "test", Commit: "none", ClaudeCLI: "2.0.0", Engine: "fake"}
}

// ClaudeStatus implements api.System.
func (f *Fake) ClaudeStatus(context.Context, stromboli.Principal) api.ClaudeStatus {
	return api.ClaudeStatus{Configured: true, Message: "an API key is configured"}
}

// Vault implements api.Secrets in memory. It takes every name but "bad".
type Vault struct {
	mu   sync.Mutex
	kept map[string]stromboli.Secret
}

// Create implements api.Secrets.
func (v *Vault) Create(_ context.Context, p stromboli.Principal, name string, value []byte) (stromboli.Secret, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := stromboli.Secret{ID: "id-" + name, Tenant: p.Tenant, Name: name, CreatedAt: time.Unix(1_700_000_000, 0)}
	if name == "bad" || len(value) == 0 {
		return s, stromboli.FieldError("name", "is bad")
	}
	if _, taken := v.kept[p.Tenant+"/"+name]; taken {
		return s, stromboli.Errorf(stromboli.Conflict, "the secret %s exists already", name)
	}
	if v.kept == nil {
		v.kept = map[string]stromboli.Secret{}
	}
	v.kept[p.Tenant+"/"+name] = s
	return s, nil
}

// Describe implements api.Secrets.
func (v *Vault) Describe(_ context.Context, p stromboli.Principal, name string) (stromboli.Secret, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.kept[p.Tenant+"/"+name]
	if !ok {
		return s, stromboli.Errorf(stromboli.NotFound, "there is no secret %q", name)
	}
	return s, nil
}

// List implements api.Secrets.
func (v *Vault) List(_ context.Context, p stromboli.Principal) ([]stromboli.Secret, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []stromboli.Secret
	for _, s := range v.kept {
		if s.Tenant == p.Tenant {
			list = append(list, s)
		}
	}
	return list, nil
}

// Delete implements api.Secrets.
func (v *Vault) Delete(ctx context.Context, p stromboli.Principal, name string) error {
	if _, err := v.Describe(ctx, p, name); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.kept, p.Tenant+"/"+name)
	return nil
}
