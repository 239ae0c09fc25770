package runner

import (
	"context"
	"io"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// Store keeps runs and sessions. Every method is durable on return and answers
// a write with an old epoch with an error that changes nothing.
type Store interface {
	CreateRun(ctx context.Context, n stromboli.NewRun) (run stromboli.Run, existing bool, err error)
	GetRun(ctx context.Context, tenant, id string) (stromboli.Run, error)
	ListRuns(ctx context.Context, f stromboli.RunFilter) (runs []stromboli.Run, next string, err error)
	ActiveRuns(ctx context.Context) ([]stromboli.Run, error)
	ClaimPending(ctx context.Context, owner string) (run stromboli.Run, ok bool, err error)
	Takeover(ctx context.Context, id, owner string) (epoch int64, err error)
	UpdateRun(ctx context.Context, id string, epoch int64, u stromboli.RunUpdate) ([]stromboli.Event, error)
	RequestCancel(ctx context.Context, c stromboli.CancelRequest) (stromboli.Run, error)
	SetNetwork(ctx context.Context, tenant, id string, n stromboli.Network) (stromboli.Run, error)
	Attestation(ctx context.Context, tenant, id string) (stromboli.Attestation, error)
	EgressRecords(ctx context.Context, runID string, after int64, limit int) ([]stromboli.EgressRecord, error)
	// EgressUsage sums the tokens of a run's stored records.
	EgressUsage(ctx context.Context, runID string) (stromboli.Usage, error)
	FinishRun(ctx context.Context, id string, epoch int64, f stromboli.RunFinish) ([]stromboli.Event, error)
	GetSession(ctx context.Context, tenant, id string) (stromboli.Session, error)
	ListSessions(ctx context.Context, f stromboli.SessionFilter) (list []stromboli.Session, next string, err error)
	CreateSession(ctx context.Context, s stromboli.Session) error
	DeleteSession(ctx context.Context, tenant, name string) (stromboli.Session, error)
	DeletedSessions(ctx context.Context) ([]stromboli.Session, error)
	ForgetSession(ctx context.Context, id string) error
	DeleteIdleSession(ctx context.Context, id string, before time.Time) (stromboli.Session, error)
	KeptSandboxes(ctx context.Context) ([]stromboli.Session, error)
	ForgetSandbox(ctx context.Context, sessionID, sandboxID, runID string) (bool, error)
	TranscriptsInUse(ctx context.Context, keys []string) (stromboli.TranscriptUse, error)
}

// Log is the event log of runs. Append is durable on return and skips lines
// whose events are stored already. Wake tells followers of events that came
// into the store by another way.
type Log interface {
	Append(ctx context.Context, runID string, epoch int64, events []stromboli.Event) ([]stromboli.Event, error)
	Wake(runID string)
	Events(ctx context.Context, runID string, after int64, limit int) ([]stromboli.Event, error)
}

// Sandboxes makes sandboxes and finds them again.
type Sandboxes interface {
	// Check refuses what no sandbox could be made from, before a run exists.
	Check(ctx context.Context, p policy.Plan) (sandbox.Plan, error)
	// Room answers stromboli.StorageFull while free space is too scarce for a
	// new run.
	Room() error
	// EngineSecrets lists the names of the secrets that the engine keeps.
	EngineSecrets(ctx context.Context) ([]string, error)
	Create(ctx context.Context, s sandbox.Spec) (*sandbox.Sandbox, error)
	Adopt(ctx context.Context, id string, reach sandbox.Reach) (*sandbox.Sandbox, error)
	// SetReach changes what a living sandbox reaches.
	SetReach(ctx context.Context, box *sandbox.Sandbox, reach sandbox.Reach) error
	// Release lets go of a sandbox, which goes on for the next server.
	Release(box *sandbox.Sandbox) error
	Discard(ctx context.Context, id string) error
	// Keep stops the sandbox of a run that has ended; it does nothing once another
	// run is in it. Resume starts it for another run; a sandbox.UnusableError says
	// that it is to be discarded.
	Keep(ctx context.Context, id, runID string) error
	Resume(ctx context.Context, s sandbox.Spec) (*sandbox.Sandbox, error)
	// Sweep finds every sandbox of this server that nobody claims, and kept ones
	// that run. The function that it returns discards and stops them and may take
	// long.
	Sweep(ctx context.Context, c sandbox.Claims) (discard func(context.Context), err error)
	Home(sessionID string, uid, gid int) sandbox.Home
	// HomeOf is the home that a sandbox has mounted.
	HomeOf(box *sandbox.Sandbox) sandbox.Home
	// RemoveSession removes a session's directories.
	RemoveSession(sessionID string) error
}

// Blobs keeps transcripts. Put is durable on return; Get answers a missing key
// with fs.ErrNotExist.
type Blobs interface {
	Put(ctx context.Context, key string, r io.Reader) (int64, error)
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	Delete(ctx context.Context, key string) error
	// Keys calls fn for each key below a prefix, in no order.
	Keys(ctx context.Context, prefix string, fn func(key string) error) error
	// DeleteAll removes every blob below a key.
	DeleteAll(ctx context.Context, prefix string) error
}

// Archives are the events of finished runs outside of the database.
type Archives interface {
	// DeleteSession deletes those of a session that is being deleted.
	DeleteSession(ctx context.Context, sessionID string) error
}

// Model is the model's endpoint as runs see it.
type Model interface {
	// Ready makes sure that the endpoint has a credential for a tenant's runs
	// and returns its kind. It answers stromboli.NotConfigured when there is none.
	Ready(ctx context.Context, tenant string) (kind string, err error)
}

// Secrets are what tenants have given the server to keep.
type Secrets interface {
	// Get returns a secret's value; stromboli.NotFound where there is none.
	Get(ctx context.Context, tenant, name string) ([]byte, error)
}

// Connections tells of the connections of sandboxes.
type Connections interface {
	// Records returns a sandbox's records after a position, in order and without
	// gaps, at most limit. It waits for one for so long. Up to the position they
	// are forgotten.
	Records(ctx context.Context, sandboxID string, after int64, limit int, wait time.Duration) ([]stromboli.EgressRecord, error)
	// Close ends a sandbox's connections and lets no more begin. Records then
	// returns what is left without waiting.
	Close(ctx context.Context, sandboxID string) error
	// Spans returns what the sandbox's agent has exported for its trace, as it
	// came: bodies of requests of OTLP.
	Spans(ctx context.Context, sandboxID string) ([][]byte, error)
}

// Tracer joins runs to traces.
type Tracer interface {
	// Context is the place in a trace of the request in ctx; zero where it is in
	// none.
	Context(ctx context.Context) stromboli.TraceContext
	// Agent is the traceparent that the agent of a run is told whose request had
	// that place; empty: it takes no part.
	Agent(runID string, at stromboli.TraceContext) string
	// Exported takes what the agent of a run has exported, and doesn't wait.
	Exported(runID string, exports [][]byte)
}
