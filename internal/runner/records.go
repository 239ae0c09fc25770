package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	recordBatch = 500
	recordWait  = 20 * time.Second

	// maxDeniedEvents bounds the events of a run about denied connections; all of
	// them are in its records.
	maxDeniedEvents = 100

	// lastRecordsTime bounds the wait for an egress that is not there at a run's
	// end.
	lastRecordsTime = 10 * time.Second
)

// recordReader stores the records of a sandbox's connections. Its position is
// the run's: nothing is stored twice or passed over, whoever dies.
type recordReader struct {
	e           *execution
	sandbox     string
	epoch       int64
	seq, denied int64
}

func newRecordReader(e *execution) *recordReader {
	return &recordReader{e: e, sandbox: e.row.SandboxID, epoch: e.row.Epoch, seq: e.row.EgressSeq, denied: e.row.EgressDenied}
}

// follow stores records as they come, until ctx ends.
func (r *recordReader) follow(ctx context.Context) {
	for ctx.Err() == nil {
		_, err := r.next(ctx, recordWait)
		for err != nil && ctx.Err() == nil { // what was being written may be durable or not
			r.e.log.DebugContext(ctx, "reading the records of connections; it is tried again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(storeRetry):
			}
			err = r.sync(ctx)
		}
	}
}

// sync finds the position again.
func (r *recordReader) sync(ctx context.Context) error {
	run, err := r.e.r.cfg.Store.GetRun(ctx, r.e.row.Tenant, r.e.id)
	if err != nil {
		return err
	}
	r.seq, r.denied = run.EgressSeq, run.EgressDenied
	return nil
}

// next stores what there is, or comes within so long, and tells how much that
// was.
func (r *recordReader) next(ctx context.Context, wait time.Duration) (int, error) {
	records, err := r.e.r.cfg.Connections.Records(ctx, r.sandbox, r.seq, recordBatch, wait)
	if err != nil || len(records) == 0 {
		return 0, err
	}
	u := stromboli.RunUpdate{Egress: records}
	denied := r.denied
	for _, rec := range records {
		if rec.Verdict != stromboli.EgressDenied {
			continue
		}
		switch denied++; {
		case denied <= maxDeniedEvents:
			u.Events = append(u.Events, event(stromboli.EventEgressDenied, stromboli.EgressDeniedData{Host: rec.Host, Port: rec.Port, Why: rec.Why}))
		case denied == maxDeniedEvents+1:
			u.Events = append(u.Events, event(stromboli.EventWarning, stromboli.WarningData{
				Code: "egress_denied_many", Message: fmt.Sprintf("more than %d connections were denied; GET /jobs/{id}/egress has all of them", maxDeniedEvents),
			}))
		}
	}
	err = r.e.persist(ctx, func() error {
		_, err := r.e.r.cfg.Store.UpdateRun(ctx, r.e.id, r.epoch, u)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("storing the records of connections: %w", err)
	}
	if told := r.e.r.cfg.Connected; told != nil {
		told(records)
	}
	if len(u.Events) > 0 {
		r.e.r.cfg.Log.Wake(r.e.id)
	}
	r.seq, r.denied = records[len(records)-1].Seq, denied
	return len(records), nil
}

// lastRecords ends the sandbox's connections and stores what is left of their
// records. Nobody else reads them any more.
func (e *execution) lastRecords(ctx context.Context) error {
	if !e.row.AgentStarted {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lastRecordsTime)
	defer cancel()
	if err := e.r.cfg.Connections.Close(ctx, e.row.SandboxID); err != nil {
		return fmt.Errorf("closing the sandbox's connections: %w", err)
	}
	r := newRecordReader(e)
	if err := r.sync(ctx); err != nil {
		return err
	}
	for {
		if n, err := r.next(ctx, 0); err != nil || n == 0 {
			return err
		}
	}
}

// closeConnections ends the connections of a sandbox that is about to be
// removed, and gives whoever follows its records a moment to read the last.
func (e *execution) closeConnections(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastRecordsTime)
	defer cancel()
	if err := e.r.cfg.Connections.Close(ctx, e.row.SandboxID); err != nil {
		return
	}
	for {
		records, err := e.r.cfg.Connections.Records(ctx, e.row.SandboxID, 0, 1, 0)
		if err != nil || len(records) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Egress returns up to limit records of a run's connections after a position.
func (r *Runner) Egress(ctx context.Context, p stromboli.Principal, id string, after int64, limit int) ([]stromboli.EgressRecord, error) {
	if _, err := r.cfg.Store.GetRun(ctx, p.Tenant, id); err != nil {
		return nil, err
	}
	return r.cfg.Store.EgressRecords(ctx, id, after, limit)
}
