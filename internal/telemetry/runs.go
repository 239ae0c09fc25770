package telemetry

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
)

// maxLiveRuns bounds what is remembered of runs that have not ended. A run
// beyond it is counted, and its phases aren't timed.
const maxLiveRuns = 20_000

// runWatch times the phases of runs that have not ended.
type runWatch struct {
	mu   sync.Mutex
	live map[string]liveRun
}

type liveRun struct {
	phase stromboli.Phase
	since time.Time // on the monotonic clock
	start string    // kind of start, once that is known
}

// Events counts what events of a run tell. Each must be told once, when it is
// durable, and those of one run in order. Of a run that an earlier server
// began, what that server saw isn't counted again.
func (m *Metrics) Events(runID string, events []stromboli.Event) {
	for i := range events {
		ev := &events[i]
		switch ev.Type { //nolint:exhaustive // the others are not counted
		case stromboli.EventRunCreated:
			var d struct {
				Kind string `json:"kind"`
			}
			if json.Unmarshal(ev.Data, &d) == nil {
				m.runsAccepted.WithLabelValues(setOf(stromboli.KindSync, stromboli.KindAsync, stromboli.KindStream).of(d.Kind)).Inc()
			}
		case stromboli.EventPhase:
			var d stromboli.PhaseData
			if json.Unmarshal(ev.Data, &d) == nil {
				m.phase(runID, d)
			}
		case stromboli.EventRunStarted:
			var d struct {
				Start string `json:"start"`
			}
			if json.Unmarshal(ev.Data, &d) == nil {
				m.runs.started(runID, d.Start)
			}
		case stromboli.EventRunFinished:
			m.finished(runID, ev.Data)
		}
	}
}

func (m *Metrics) phase(runID string, d stromboli.PhaseData) {
	now := time.Now()
	before := m.runs.enter(runID, d.Phase, now)
	if before.phase != "" {
		m.phaseDuration.WithLabelValues(phases().of(string(before.phase))).Observe(now.Sub(before.since).Seconds())
	}
	if d.Timing != nil && before.start != "" {
		m.startLength.WithLabelValues(starts().of(before.start)).Observe((time.Duration(d.Timing.TotalUS) * time.Microsecond).Seconds())
	}
}

// finished takes what it counts out of an outcome, and not the output, which
// may be long.
func (m *Metrics) finished(runID string, data []byte) {
	if last := m.runs.leave(runID); last.phase != "" {
		m.phaseDuration.WithLabelValues(phases().of(string(last.phase))).Observe(time.Since(last.since).Seconds())
	}
	var d struct {
		Status stromboli.Status `json:"status"`
		Reason stromboli.Reason `json:"reason"`
		Usage  *stromboli.Usage `json:"usage"`
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	reason := "none"
	if d.Reason != "" {
		reason = reasons().of(string(d.Reason))
	}
	m.runsEnded.WithLabelValues(outcomes().of(string(d.Status)), reason).Inc()
	if d.Usage != nil {
		model := m.models.of(d.Usage.Model)
		countTokens(m.tokens, model, d.Usage)
		m.cost.WithLabelValues(model).Add(amount(d.Usage.EstimatedCostUSD))
	}
}

// enter notes a run's new phase and returns what was known before.
func (w *runWatch) enter(runID string, phase stromboli.Phase, now time.Time) liveRun {
	w.mu.Lock()
	defer w.mu.Unlock()
	before, known := w.live[runID]
	if !known && len(w.live) >= maxLiveRuns {
		return liveRun{}
	}
	w.live[runID] = liveRun{phase: phase, since: now, start: before.start}
	return before
}

func (w *runWatch) started(runID, start string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r, known := w.live[runID]; known {
		r.start = start
		w.live[runID] = r
	}
}

func (w *runWatch) leave(runID string) liveRun {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.live[runID]
	delete(w.live, runID)
	return last
}

// The closed sets of the vocabulary.

func outcomes() oneOf {
	return setOf(stromboli.Completed, stromboli.Failed, stromboli.Crashed, stromboli.Cancelled)
}

func phases() oneOf {
	return setOf(stromboli.PhaseQueued, stromboli.PhasePulling, stromboli.PhaseCreating, stromboli.PhaseHooks, stromboli.PhaseStarting, stromboli.PhaseGenerating,
		stromboli.PhaseWaitingApproval, stromboli.PhaseWaitingBudget, stromboli.PhaseCancelling, stromboli.PhaseFinishing)
}

func starts() oneOf { return setOf("cold", "warm_sandbox", "warm_agent", "kept") }

func reasons() oneOf {
	return setOf(stromboli.ReasonTimeout, stromboli.ReasonOrphaned, stromboli.ReasonDisk, stromboli.ReasonBudget, stromboli.ReasonMaxTurns, stromboli.ReasonSchema,
		stromboli.ReasonAuth, stromboli.ReasonOverloaded, stromboli.ReasonModel, stromboli.ReasonHook, stromboli.ReasonImage, stromboli.ReasonNotEnforced,
		stromboli.ReasonEngine, stromboli.ReasonNotConfigured, stromboli.ReasonSession,
		stromboli.ReasonOOM, stromboli.ReasonSignal, stromboli.ReasonExit, stromboli.ReasonLost, stromboli.ReasonRequest, stromboli.ReasonDisconnect)
}
