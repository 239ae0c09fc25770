// Package webhook tells callers of the end of their runs: it takes what the
// store's outbox holds, signs it, sends it, and tries again.
//
// It promises that what is in the outbox is sent at least once, under one id
// and with one body, whoever dies in between, until a receiver answers 2xx, 410
// or the schedule is used up; that it connects to public addresses alone, and
// to what configuration permits, judged on the address of the connection
// itself; that a receiver which is slow or away holds up none but its own
// deliveries; and that a URL is told to nobody, not even the log.
//
// It keeps nothing in memory but the attempts that are being made, however many
// deliveries wait. It knows nothing of runs.
package webhook

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// Outbox is what the Sender needs of the store. What a method has done is
// durable on return.
type Outbox interface {
	// ReleaseDeliveries makes those due of which a server that is gone was
	// making an attempt.
	ReleaseDeliveries(ctx context.Context) error
	// ClaimDeliveries gives up to most due deliveries to the caller, no more
	// than perHost of one host being claimed at a time.
	ClaimDeliveries(ctx context.Context, most, perHost int) ([]stromboli.ClaimedDelivery, error)
	// FinishDelivery records what became of an attempt; stromboli.Conflict where
	// that is known already.
	FinishDelivery(ctx context.Context, id string, attempt int, r stromboli.DeliveryResult) error
	// NextDelivery tells when there will be something to claim.
	NextDelivery(ctx context.Context, perHost int) (at time.Time, ok bool, err error)
	// DeliveryDue has a value when something has become due by other than the
	// passing of time.
	DeliveryDue() <-chan struct{}

	ListDeliveries(ctx context.Context, f stromboli.DeliveryFilter) (list []stromboli.Delivery, next string, err error)
	// RedeliverDelivery makes one due; NotFound, Conflict while it is being sent.
	RedeliverDelivery(ctx context.Context, tenant, id string) (stromboli.Delivery, error)
}

const (
	// inFlight bounds the attempts that are made at a time, and so the bodies in
	// memory; perHost those to one host:port.
	inFlight = 64
	perHost  = 4

	// idle is how often the outbox is looked at when nothing says that it
	// changed: a clock that was set must not stop deliveries.
	idle = 30 * time.Second
	// storeRetry is the pause after the store failed.
	storeRetry = time.Second
	// lastWords is how long attempts go on when the server stops, and recordTime
	// how long recording their ends may take after that.
	lastWords  = 3 * time.Second
	recordTime = 3 * time.Second
)

// Config is what a Sender needs. Outbox and Log are required.
type Config struct {
	Outbox  Outbox
	Secrets []Secret // the newest first; none: nothing is signed
	// Allow are hosts that may be connected to though they aren't public.
	Allow policy.Hosts
	// Timeout bounds an attempt; 15 s.
	Timeout time.Duration
	// Schedule are the waits after the first, second… failed attempt, without
	// their jitter; after one more the delivery is dead. Nil: DefaultSchedule.
	Schedule []time.Duration
	// Now is the clock on the wall; nil: the machine's.
	Now func() time.Time
	Log *slog.Logger
	// Attempted, if set, is told of each attempt: what the delivery is from then
	// on, pending where it is tried again. It must be quick.
	Attempted func(stromboli.DeliveryStatus)
}

// DefaultSchedule is twelve attempts within 24 hours.
func DefaultSchedule() []time.Duration {
	const first, longest, waits = 5 * time.Second, 6*time.Hour + 30*time.Minute, 11
	var all []time.Duration
	for d := first; len(all) < waits; d = min(3*d, longest) {
		all = append(all, d)
	}
	return all
}

// Sender sends what is in the outbox.
type Sender struct {
	cfg      Config
	dialer   *dialer
	client   *http.Client
	attempts sync.WaitGroup
	slots    chan struct{} // one value per attempt that is being made
	freed    chan struct{} // one slot: an attempt has ended
}

// New returns a Sender that does nothing before Run.
func New(cfg Config) (*Sender, error) {
	if cfg.Outbox == nil || cfg.Log == nil {
		return nil, errors.New("webhook: Outbox and Log are required")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.Schedule == nil {
		cfg.Schedule = DefaultSchedule()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := newDialer(cfg.Allow)
	return &Sender{
		cfg: cfg, dialer: d, client: newClient(d),
		slots: make(chan struct{}, inFlight), freed: make(chan struct{}, 1),
	}, nil
}

// SetAllow says which hosts may be connected to from now on though they aren't
// public.
func (s *Sender) SetAllow(allow policy.Hosts) { s.dialer.allow.Store(&allow) }

// Run sends until ctx ends; attempts then have a few seconds to end. What is
// left is sent by the next Run. It returns when no attempt is being made any
// more.
func (s *Sender) Run(ctx context.Context) error {
	attempts, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	for err := s.cfg.Outbox.ReleaseDeliveries(ctx); err != nil; err = s.cfg.Outbox.ReleaseDeliveries(ctx) {
		if !pause(ctx, idle) {
			return nil
		}
		s.cfg.Log.WarnContext(ctx, "taking webhook deliveries over; it is tried again", "error", err)
	}
	for ctx.Err() == nil {
		wait := s.claim(ctx, attempts)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-s.freed:
		case <-s.cfg.Outbox.DeliveryDue():
		}
		timer.Stop()
	}
	timer := time.AfterFunc(lastWords, end)
	defer timer.Stop()
	s.attempts.Wait()
	return nil
}

// claim begins as many attempts as there may be, and tells how long there is
// nothing more to do.
func (s *Sender) claim(ctx, attempts context.Context) time.Duration {
	free := inFlight - len(s.slots)
	if free == 0 {
		return idle // an attempt's end comes first
	}
	claimed, err := s.cfg.Outbox.ClaimDeliveries(ctx, free, perHost)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.WarnContext(ctx, "claiming webhook deliveries; it is tried again", "error", err)
		}
		return storeRetry
	}
	for _, d := range claimed {
		s.slots <- struct{}{} // there is room: nobody else takes any
		s.attempts.Go(func() {
			s.attempt(attempts, d)
			<-s.slots
			select {
			case s.freed <- struct{}{}:
			default:
			}
		})
	}
	if len(claimed) == free {
		return idle
	}
	at, ok, err := s.cfg.Outbox.NextDelivery(ctx, perHost)
	switch {
	case err != nil:
		return storeRetry
	case !ok:
		return idle
	}
	return min(max(at.Sub(s.cfg.Now()), time.Millisecond), idle)
}

// attempt makes one and records what became of it.
func (s *Sender) attempt(ctx context.Context, d stromboli.ClaimedDelivery) {
	log := s.cfg.Log.With("delivery", d.ID, "run_id", d.RunID, "tenant", d.Tenant, "host", d.Host, "attempt", d.Attempts)
	o := s.send(ctx, d)
	r := s.judge(d, o)
	switch {
	case ctx.Err() != nil && o.err != nil:
		r = stromboli.DeliveryResult{Status: stromboli.DeliveryPending, NextAt: s.cfg.Now(), Untold: true}
		log.InfoContext(ctx, "a webhook's attempt was broken off; the next server makes it again")
	case r.Status == stromboli.DeliveryDelivered:
		log.DebugContext(ctx, "webhook delivered", "status", o.status)
	case r.Status == stromboli.DeliveryDead:
		log.WarnContext(ctx, "webhook given up; POST /webhooks/deliveries/{id}/redeliver sends it again", "error", o.log())
	default:
		log.InfoContext(ctx, "webhook not delivered; it is tried again", "error", o.log(), "next", r.NextAt)
	}
	if s.cfg.Attempted != nil && !r.Untold {
		s.cfg.Attempted(r.Status)
	}
	s.record(ctx, log, d, r)
}

// record stores an attempt's end. While the store can't, the attempt keeps its
// slot: nothing is sent again and again without a record.
func (s *Sender) record(ctx context.Context, log *slog.Logger, d stromboli.ClaimedDelivery, r stromboli.DeliveryResult) {
	for {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTime)
		err := s.cfg.Outbox.FinishDelivery(bounded, d.ID, d.Attempts, r)
		cancel()
		if err == nil || errors.Is(err, stromboli.Conflict) {
			return
		}
		log.WarnContext(ctx, "recording a webhook's attempt", "error", err)
		if !pause(ctx, storeRetry) {
			return // the next server sends it again
		}
	}
}

// judge says what follows from an answer.
func (s *Sender) judge(d stromboli.ClaimedDelivery, o outcome) stromboli.DeliveryResult {
	r := stromboli.DeliveryResult{HTTPStatus: o.status, Error: o.shown}
	switch {
	case o.ok():
		r.Status = stromboli.DeliveryDelivered
	case o.status == http.StatusGone, d.Tries > len(s.cfg.Schedule):
		r.Status = stromboli.DeliveryDead
	default:
		wait := s.cfg.Schedule[d.Tries-1]
		wait = max(wait*8/10+rand.N(wait*4/10+1), o.retryAfter) //nolint:gosec // jitter
		r.Status, r.NextAt = stromboli.DeliveryPending, s.cfg.Now().Add(wait)
	}
	return r
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Deliveries returns a page of the principal's deliveries, newest first, and
// the cursor of the next. The filter's tenant is not set.
func (s *Sender) Deliveries(ctx context.Context, p stromboli.Principal, f stromboli.DeliveryFilter) ([]stromboli.Delivery, string, error) {
	f.Tenant = p.Tenant
	return s.cfg.Outbox.ListDeliveries(ctx, f)
}

// Redeliver has a delivery of the principal's sent again, whatever became of
// it; stromboli.NotFound, stromboli.Conflict while it is being sent.
func (s *Sender) Redeliver(ctx context.Context, p stromboli.Principal, id string) (stromboli.Delivery, error) {
	return s.cfg.Outbox.RedeliverDelivery(ctx, p.Tenant, id)
}
