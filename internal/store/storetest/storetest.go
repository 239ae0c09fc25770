// Package storetest is what every store must do, as a test: each database that
// holds runs passes the same suite.
package storetest

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// Store is the whole of a store's methods. Consumers name their own, smaller
// interfaces.
type Store interface {
	CreateRun(ctx context.Context, in stromboli.NewRun) (run stromboli.Run, existing bool, err error)
	GetRun(ctx context.Context, tenant, id string) (stromboli.Run, error)
	ListRuns(ctx context.Context, f stromboli.RunFilter) (runs []stromboli.Run, next string, err error)
	ActiveRuns(ctx context.Context) ([]stromboli.Run, error)
	ClaimPending(ctx context.Context, owner string) (run stromboli.Run, ok bool, err error)
	Takeover(ctx context.Context, runID, owner string) (epoch int64, err error)
	UpdateRun(ctx context.Context, runID string, epoch int64, u stromboli.RunUpdate) ([]stromboli.Event, error)
	RequestCancel(ctx context.Context, c stromboli.CancelRequest) (stromboli.Run, error)
	FinishRun(ctx context.Context, runID string, epoch int64, f stromboli.RunFinish) ([]stromboli.Event, error)
	SetNetwork(ctx context.Context, tenant, runID string, n stromboli.Network) (stromboli.Run, error)
	Attestation(ctx context.Context, tenant, runID string) (stromboli.Attestation, error)
	CreateSecret(ctx context.Context, s stromboli.SealedSecret) error
	GetSecret(ctx context.Context, tenant, name string) (stromboli.SealedSecret, error)
	ListSecrets(ctx context.Context, tenant string) ([]stromboli.Secret, error)
	DeleteSecret(ctx context.Context, tenant, name string) error
	OtherlySealed(ctx context.Context, keyID string, limit int) ([]stromboli.SealedSecret, error)
	ReplaceBox(ctx context.Context, s stromboli.SealedSecret, keyID string, box []byte) error
	CreateGrant(ctx context.Context, g stromboli.Grant) error
	GetGrant(ctx context.Context, id string) (stromboli.Grant, error)
	RotateGrant(ctx context.Context, id, from, to string, expires time.Time) (bool, error)
	RevokeGrant(ctx context.Context, id string, expires time.Time) error
	DeleteExpiredGrants(ctx context.Context) (int, error)
	EgressRecords(ctx context.Context, runID string, after int64, limit int) ([]stromboli.EgressRecord, error)
	EgressUsage(ctx context.Context, runID string) (stromboli.Usage, error)
	Waiting(ctx context.Context) (store.Waiting, error)

	ReleaseDeliveries(ctx context.Context) error
	ClaimDeliveries(ctx context.Context, most, perHost int) ([]stromboli.ClaimedDelivery, error)
	FinishDelivery(ctx context.Context, id string, attempt int, r stromboli.DeliveryResult) error
	NextDelivery(ctx context.Context, perHost int) (at time.Time, ok bool, err error)
	DeliveryDue() <-chan struct{}
	ListDeliveries(ctx context.Context, f stromboli.DeliveryFilter) (list []stromboli.Delivery, next string, err error)
	RedeliverDelivery(ctx context.Context, tenant, id string) (stromboli.Delivery, error)
	DeleteFinishedDeliveries(ctx context.Context, before time.Time, limit int) (int, error)

	AppendEvents(ctx context.Context, runID string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error)
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
	EventData(ctx context.Context, runID string, seq int64) (json.RawMessage, error)
	LastEvent(ctx context.Context, runID string) (seq int64, ended bool, err error)
	OnCommit(fn func(runID string, events []stromboli.Event))

	GetSession(ctx context.Context, tenant, id string) (stromboli.Session, error)
	ListSessions(ctx context.Context, f stromboli.SessionFilter) (list []stromboli.Session, next string, err error)
	CreateSession(ctx context.Context, s stromboli.Session) error
	DeleteSession(ctx context.Context, tenant, name string) (stromboli.Session, error)
	DeletedSessions(ctx context.Context) ([]stromboli.Session, error)
	ForgetSession(ctx context.Context, id string) error
	KeptSandboxes(ctx context.Context) ([]stromboli.Session, error)
	ForgetSandbox(ctx context.Context, sessionID, sandboxID, runID string) (bool, error)
	TranscriptsInUse(ctx context.Context, keys []string) (stromboli.TranscriptUse, error)
	SaveTranscript(ctx context.Context, sessionID string, expectVersion int64, key string) error

	DeleteExpiredIdempotency(ctx context.Context) (int, error)
	FinishedRuns(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error)
	DeleteRun(ctx context.Context, runID string) error
	RunsToArchive(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error)
	RunsWithArchive(ctx context.Context, before time.Time, after stromboli.FinishedRun, limit int) ([]stromboli.FinishedRun, error)
	ArchivesOfSession(ctx context.Context, sessionID string) ([]stromboli.FinishedRun, error)
	BeginArchive(ctx context.Context, a stromboli.Archive) error
	FinishedRun(ctx context.Context, id string) (stromboli.FinishedRun, error)
	EndArchive(ctx context.Context, a stromboli.Archive) error
	GetArchive(ctx context.Context, runID string) (stromboli.Archive, error)
	DeleteArchivedEvents(ctx context.Context, runID string) error
	ForgetArchive(ctx context.Context, runID string) error
	IdleSessions(ctx context.Context, before time.Time, after stromboli.Session, limit int) ([]stromboli.Session, error)
	DeleteIdleSession(ctx context.Context, id string, before time.Time) (stromboli.Session, error)
}

var _ Store = (*store.Store)(nil)

// Clock is a clock that a test moves; the store under test must use it.
type Clock struct{ now time.Time }

// Now is the clock's time. It moves only between a test's calls of the store.
func (c *Clock) Now() time.Time { return c.now }

// NewClock returns a clock that stands at some time of the past.
func NewClock() *Clock { return &Clock{now: time.UnixMilli(1_700_000_000_123).UTC()} }

func (c *Clock) add(d time.Duration) { c.now = c.now.Add(d) }

// Run runs the suite. open returns an empty store that uses the clock and is
// closed at the test's end.
func Run(t *testing.T, open func(t *testing.T, clock *Clock) Store) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *fixture){
		"create":           testCreate,
		"create running":   testCreateRunning,
		"sessions":         testSessions,
		"aliases":          testAliases,
		"alias race":       testAliasRace,
		"session list":     testSessionList,
		"session create":   testSessionCreate,
		"session delete":   testSessionDelete,
		"continue":         testContinue,
		"fork":             testFork,
		"hooks":            testHooks,
		"kept sandboxes":   testKept,
		"transcript use":   testTranscriptUse,
		"ephemeral":        testEphemeral,
		"queue":            testQueue,
		"idempotency":      testIdempotency,
		"claim":            testClaim,
		"claim race":       testClaimRace,
		"takeover":         testTakeover,
		"append":           testAppend,
		"append lines":     testAppendLines,
		"append large":     testAppendLarge,
		"append race":      testAppendRace,
		"commit hook":      testCommitHook,
		"update":           testUpdate,
		"network":          testNetwork,
		"waiting":          testWaiting,
		"attestation":      testAttestation,
		"secrets":          testSecretRows,
		"grants":           testGrants,
		"grant race":       testGrantRace,
		"outbox":           testOutbox,
		"claim deliveries": testClaimDeliveries,
		"redeliver":        testRedeliver,
		"list deliveries":  testListDeliveries,
		"keep deliveries":  testDeliveryRetention,
		"drop deliveries":  testForgetDeliveries,
		"cancel pending":   testCancelPending,
		"cancel running":   testCancelRunning,
		"finish":           testFinish,
		"finish refused":   testFinishRefused,
		"transcript":       testTranscript,
		"list":             testList,
		"list filters":     testListFilters,
		"tenants":          testTenants,
		"retention":        testRetention,
		"archive":          testArchive,
		"idle sessions":    testIdleSessions,
		"cancelled caller": testCancelledCaller,
		"lifecycle":        testLifecycle,
	} {
		t.Run(name, func(t *testing.T) {
			clock := NewClock()
			test(t, &fixture{Store: open(t, clock), clock: clock})
		})
	}
}

// fixture is a store and short ways to fill it.
type fixture struct {
	Store
	clock *Clock
}

func (f *fixture) newRun(kind stromboli.Kind) stromboli.NewRun {
	session := uuid.NewString()
	return stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(f.clock.Now()), Tenant: stromboli.DefaultTenant, CreatedBy: "test", Kind: kind,
			SessionID: session, Status: stromboli.Pending, Phase: stromboli.PhaseQueued,
			Spec: stromboli.RunSpec{Prompt: "hello"},
		},
		Events:        []stromboli.Event{event(stromboli.EventRunCreated, `{"a":1}`)},
		CreateSession: &stromboli.Session{},
		MaxQueued:     1000,
	}
}

func (f *fixture) create(t *testing.T, in stromboli.NewRun) stromboli.Run {
	t.Helper()
	run, existing, err := f.CreateRun(t.Context(), in)
	if err != nil || existing {
		t.Fatalf("CreateRun: existing %v, %v", existing, err)
	}
	return run
}

// running makes a run that "one" executes with epoch 1.
func (f *fixture) running(t *testing.T) stromboli.Run {
	t.Helper()
	in := f.newRun(stromboli.KindAsync)
	in.Run.Status, in.Run.Owner = stromboli.Running, "one"
	return f.create(t, in)
}

func (f *fixture) get(t *testing.T, id string) stromboli.Run {
	t.Helper()
	run, err := f.GetRun(t.Context(), stromboli.DefaultTenant, id)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func (f *fixture) finish(t *testing.T, run stromboli.Run, status stromboli.Status) stromboli.Run {
	t.Helper()
	if _, err := f.FinishRun(t.Context(), run.ID, run.Epoch, ended(status)); err != nil {
		t.Fatal(err)
	}
	return f.get(t, run.ID)
}

func event(kind stromboli.EventType, data string) stromboli.Event {
	return stromboli.Event{Type: kind, Data: json.RawMessage(data)}
}

func line(n int64, index int, data string) stromboli.Event {
	return stromboli.Event{Type: stromboli.EventOutput, Line: n, Index: index, Data: json.RawMessage(data)}
}

func ended(status stromboli.Status) stromboli.RunFinish {
	return stromboli.RunFinish{Outcome: stromboli.Outcome{Status: status, Output: "done"}}
}

// log reads all events of a run and checks that they count 1, 2, 3… up to the
// run's LastSeq.
func (f *fixture) log(t *testing.T, id string) []stromboli.Event {
	t.Helper()
	var all []stromboli.Event
	for {
		evs, err := f.Events(t.Context(), id, int64(len(all)), 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(evs) == 0 {
			break
		}
		all = append(all, evs...)
	}
	for i, ev := range all {
		if ev.Seq != int64(i+1) || ev.RunID != id {
			t.Fatalf("event %d of %s has sequence %d of %s", i+1, id, ev.Seq, ev.RunID)
		}
	}
	last, _, err := f.LastEvent(t.Context(), id)
	if err != nil || last != int64(len(all)) {
		t.Fatalf("LastEvent: %d, %v; there are %d", last, err, len(all))
	}
	return all
}
