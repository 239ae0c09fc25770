package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/egress"
)

const (
	// startsInARow is how many runs must have got no sandbox, one after the other,
	// before that is called a fault.
	startsInARow = 3
	// recentFor is how long what happened is taken for the present.
	recentFor = 15 * time.Minute
)

// recent knows of the last runs what tells of faults that nobody can look for: a
// credential that the model refuses, sandboxes that can't be made.
type recent struct {
	now func() time.Time

	mu      sync.Mutex
	refused time.Time // zero: the last answer of the model was none
	failed  int       // runs in a row
	at      time.Time // of the last of these
	reason  stromboli.Reason
}

// Events takes what runs tell, when it is durable.
func (r *recent) Events(_ string, events []stromboli.Event) {
	for i := range events {
		switch events[i].Type { //nolint:exhaustive // the others say nothing of this
		case stromboli.EventRunStarted:
			r.mu.Lock()
			r.failed = 0
			r.mu.Unlock()
		case stromboli.EventRunFinished:
			r.finished(events[i].Data)
		}
	}
}

func (r *recent) finished(data []byte) {
	var d struct {
		Status stromboli.Status `json:"status"`
		Reason stromboli.Reason `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case d.Status == stromboli.Completed:
		r.refused = time.Time{}
	case d.Reason == stromboli.ReasonAuth:
		r.refused = r.now()
	case d.Reason == stromboli.ReasonEngine, d.Reason == stromboli.ReasonNotEnforced:
		r.failed++
		r.at, r.reason = r.now(), d.Reason
	}
}

// renewed: there are other credentials.
func (r *recent) renewed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = time.Time{}
}

// refusal tells that the model refused the credential of the last run that it
// answered.
func (r *recent) refusal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused.IsZero() || r.now().Sub(r.refused) > recentFor {
		return nil
	}
	return impaired("the model refused the credential of the last run (reason auth): replace it (docs/operations.md, Credentials expired)")
}

// failedStarts tells that runs get no sandbox.
func (r *recent) failedStarts() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed < startsInARow || r.now().Sub(r.at) > recentFor {
		return nil
	}
	return impaired(fmt.Sprintf("the last runs, %d or more, got no sandbox (reason %s): the part runner of the log says why, and so may `stromboli doctor`", startsInARow, r.reason))
}

// renewing tells of configurations that egress has taken.
type renewing struct {
	egressConfig
	renewed func()
}

// SetConfig implements egressConfig.
func (r renewing) SetConfig(ctx context.Context, cfg egress.Config) error {
	err := r.egressConfig.SetConfig(ctx, cfg)
	if err == nil {
		r.renewed()
	}
	return err
}
