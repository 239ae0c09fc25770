package runner

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// Submit checks a spec and makes a run of it, durable on return. The run is
// already running when a slot was free, else pending. existing is true when
// the idempotency key named a run that was made before.
func (r *Runner) Submit(ctx context.Context, p stromboli.Principal, s stromboli.Submission) (run stromboli.Run, existing bool, err error) {
	now := r.now()
	if err := r.checkWebhook(s); err != nil {
		return stromboli.Run{}, false, err
	}
	plan, err := policy.Check(s.Spec, r.policy())
	if err != nil {
		return stromboli.Run{}, false, err
	}
	if err := claude.Validate(s.Spec.Claude); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := claude.ValidateInput(s.Spec); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := r.checkSecrets(ctx, p.Tenant, s.Spec); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := r.checkBindings(ctx, p.Tenant, s.Spec); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := checkMessage(s.Spec); err != nil {
		return stromboli.Run{}, false, err
	}
	if _, err := r.cfg.Model.Ready(ctx, p.Tenant); err != nil {
		return stromboli.Run{}, false, err
	}
	if err := r.room(ctx); err != nil {
		return stromboli.Run{}, false, err
	}
	checked, err := r.check(ctx, plan, s.Spec.Claude)
	absent := errors.Is(err, sandbox.ErrImageAbsent) // the run will pull it
	if err != nil && !absent {
		return stromboli.Run{}, false, err
	}
	n := stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(now), Tenant: p.Tenant, CreatedBy: p.Name, Kind: s.Kind, Spec: s.Spec,
			Owner: r.cfg.Owner, CreatedAt: now, UpdatedAt: now, Warnings: checked.Warnings, Network: plan.Network,
		},
		MaxQueued: r.cfg.MaxQueued,
	}
	if s.Idempotency.Key != "" {
		s.Idempotency.Tenant = p.Tenant
		n.Idempotency = &s.Idempotency
	}
	session(s, checked.Workspace(), &n)
	n.FirstEvents = createdEvents(r.traceOf(ctx))
	if absent {
		return r.create(ctx, n, nil)
	}
	return r.create(ctx, n, &checked)
}

// checkWebhook judges where the run's end is to be told.
func (r *Runner) checkWebhook(s stromboli.Submission) error {
	switch {
	case s.Spec.WebhookURL == "":
		return nil
	case s.Kind != stromboli.KindAsync:
		return stromboli.FieldError("webhook_url", "is for POST /run/async only: whoever waits for the answer has it")
	}
	return policy.CheckWebhook(s.Spec.WebhookURL, r.policy().Webhooks)
}

// checkMessage refuses a message that the agent couldn't be given. What counts
// is the message as JSON, in which one character may take six.
func checkMessage(spec stromboli.RunSpec) error {
	if n := len(claude.UserMessage(messageUUID(""), spec)); n > shim.MaxStdin {
		field := "prompt"
		if len(spec.Content) > 0 {
			field = "content"
		}
		return stromboli.FieldError(field, "is %d bytes long as a message in JSON, at most %d are possible; give the agent such data as a file in a volume", n, shim.MaxStdin)
	}
	return nil
}

// check judges a plan by this host, and adds what is to be said of the options.
// With sandbox.ErrImageAbsent, of an image that may be pulled, the plan is what
// can be said without it.
func (r *Runner) check(ctx context.Context, plan policy.Plan, o stromboli.ClaudeOptions) (sandbox.Plan, error) {
	checked, err := r.cfg.Sandboxes.Check(ctx, plan)
	if err = r.judgeImage(plan.Image, checked, err); err != nil && !errors.Is(err, sandbox.ErrImageAbsent) {
		return sandbox.Plan{}, err
	}
	checked.Warnings = append(slices.Clone(checked.Warnings), claude.Advice(o)...)
	checked.Warnings = append(checked.Warnings, networkAdvice(plan.Network)...)
	checked.Warnings = append(checked.Warnings, plan.Warnings...)
	return checked, err
}

// session says which session the run belongs to. The store decides, with the
// run's creation, what there is.
func session(s stromboli.Submission, workspace string, n *stromboli.NewRun) {
	o := s.Spec.Claude
	if !o.NoPersistence { // what keeps nothing is nothing to continue
		n.Workspace = workspace
	}
	n.Resume = o.Resume || s.ResumeIfExists
	id, alias := claude.SessionName(o.SessionID)
	switch {
	case o.Continue:
		n.Continue = workspace
	case alias != "":
		n.SessionAlias = alias
	case n.Resume:
		n.ResumeSession = id
	}
	switch {
	case o.ForkSession:
		n.Fork, id = true, uuid.NewString()
	case o.Continue, o.Resume && !s.ResumeIfExists:
		n.Run.SessionID = n.ResumeSession
		return
	case id == "":
		id = uuid.NewString()
	}
	n.Run.SessionID = id
	n.CreateSession = &stromboli.Session{
		ID: id, CLISessionID: id, Ephemeral: o.NoPersistence, Title: claude.SessionTitle(s.Spec), Hooks: s.Spec.Podman.Lifecycle.Create(),
	}
}

// create inserts the run with a slot of its own when one is free and nobody
// waits for it, else as pending. checked is nil where the image has to be pulled.
func (r *Runner) create(ctx context.Context, n stromboli.NewRun, checked *sandbox.Plan) (stromboli.Run, bool, error) {
	done, err := r.enter()
	if err != nil {
		return stromboli.Run{}, false, err
	}
	defer done()
	r.mu.Lock()
	direct := r.slots < r.cfg.MaxRunning && r.pending == 0
	if direct {
		r.slots++
		n.Run.Status, n.Run.Phase, n.Run.StartedAt = stromboli.Running, stromboli.PhaseCreating, n.Run.CreatedAt
	} else {
		r.pending++
		n.Run.Status, n.Run.Phase = stromboli.Pending, stromboli.PhaseQueued
	}
	// The executor must be known before anybody can learn the run's id and
	// cancel it.
	e := newExecution(r, n.Run)
	if direct {
		r.active[n.Run.ID] = e
	}
	r.mu.Unlock()

	// A caller that goes away during the commit must not leave a row that
	// nobody executes.
	run, existing, err := r.cfg.Store.CreateRun(context.WithoutCancel(ctx), n)

	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || existing {
		if direct {
			r.slots--
			delete(r.active, n.Run.ID)
		} else {
			r.pending--
		}
		r.poke() // somebody may have queued behind what was reserved here
		return run, existing, err
	}
	r.cfg.Log.Wake(run.ID)
	r.log.InfoContext(stromboli.WithOrigin(ctx, run.Origin()), "run accepted", "kind", run.Kind, "status", run.Status, "session", run.SessionID)
	if direct {
		e.row, e.checked = run, checked
		if checked != nil {
			e.accepted = n.Run.CreatedAt
		}
		r.launch(e)
	} else {
		r.poke()
	}
	return run, false, nil
}

// enter lets a change begin that Run waits for; the caller ends it by done.
func (r *Runner) enter() (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return nil, &stromboli.Error{
			Code: stromboli.Draining, Message: "the server is about to stop and takes nothing new", RetryAfter: 5 * time.Second,
		}
	}
	r.executions.Add(1)
	return r.executions.Done, nil
}

// createdEvents makes a run's first events. The first of them is where the run's
// place in a trace is kept, for whatever server goes on with it.
func createdEvents(at stromboli.TraceContext) func(stromboli.Run) []stromboli.Event {
	return func(run stromboli.Run) []stromboli.Event {
		created := specSummary(run)
		created.TraceContext = at
		events := []stromboli.Event{
			event(stromboli.EventRunCreated, created),
			event(stromboli.EventPhase, stromboli.PhaseData{Phase: run.Phase}),
		}
		for _, w := range run.Warnings {
			events = append(events, event(stromboli.EventWarning, stromboli.WarningData(w)))
		}
		return events
	}
}

// createdData is what run.created tells of a spec: enough to recognise the
// run, without the prompt's text.
type createdData struct {
	Kind      stromboli.Kind    `json:"kind"`
	SessionID string            `json:"session_id"`
	Alias     string            `json:"session_alias,omitempty"`
	Resume    bool              `json:"resume"`
	Fork      bool              `json:"fork,omitempty"`
	Workdir   string            `json:"workdir,omitempty"`
	Image     string            `json:"image,omitempty"`
	Model     string            `json:"model,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	stromboli.TraceContext
}

func specSummary(run stromboli.Run) createdData {
	return createdData{
		Kind: run.Kind, SessionID: run.SessionID, Alias: run.SessionAlias, Resume: run.Spec.Claude.Resume,
		Fork: run.Spec.Claude.ForkSession, Workdir: run.Spec.Workdir, Image: run.Spec.Podman.Image, Model: run.Spec.Claude.Model, Metadata: run.Spec.Metadata,
	}
}
