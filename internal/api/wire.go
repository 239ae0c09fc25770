package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/tomblancdev/stromboli"
)

// result are the fields that a run's two wire forms share.
type result struct {
	Output           string               `json:"output"`
	SessionID        string               `json:"session_id"`
	SessionAlias     string               `json:"session_alias,omitempty"`
	Error            string               `json:"error,omitempty"`
	StructuredOutput json.RawMessage      `json:"structured_output,omitempty"`
	CrashInfo        *stromboli.CrashInfo `json:"crash_info,omitempty"`
	Usage            *stromboli.Usage     `json:"usage,omitempty"`
	Phase            stromboli.Phase      `json:"phase,omitempty"`
	Reason           stromboli.Reason     `json:"reason,omitempty"`
	Warnings         []stromboli.Warning  `json:"warnings"`
	ImageDigest      string               `json:"image_digest,omitempty"`
	StartedAt        time.Time            `json:"started_at,omitzero"`
	FinishedAt       time.Time            `json:"finished_at,omitzero"`
}

// runResponse is the answer of POST /run.
type runResponse struct {
	ID     string `json:"id"`
	Status string `json:"status"` // completed, crashed or error
	result
	Code      string `json:"code,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// asyncResponse is the answer of POST /run/async.
type asyncResponse struct {
	JobID        string `json:"job_id"`
	SessionID    string `json:"session_id"`
	SessionAlias string `json:"session_alias,omitempty"`
}

// jobResponse is a run as the jobs endpoints show it.
type jobResponse struct {
	ID     string           `json:"id"`
	Status stromboli.Status `json:"status"`
	result
	Kind      stromboli.Kind    `json:"kind"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Network   stromboli.Network `json:"network"`
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
}

func resultOf(run stromboli.Run) result {
	o := run.Outcome
	r := result{
		Output: o.Output, SessionID: run.SessionID, SessionAlias: run.SessionAlias, Error: o.Error,
		StructuredOutput: o.StructuredOutput, CrashInfo: o.CrashInfo, Usage: o.Usage, Phase: run.Phase, Reason: o.Reason,
		Warnings: warningsOf(run), ImageDigest: run.ImageDigest,
		StartedAt: run.StartedAt.UTC(), FinishedAt: run.FinishedAt.UTC(),
	}
	if o.SessionID != "" {
		r.SessionID = o.SessionID
	}
	if r.Error == "" && (run.Status == stromboli.Failed || run.Status == stromboli.Cancelled) {
		r.Error = failureText(run)
	}
	return r
}

// warningsOf joins what was said while the run went on and at its end.
func warningsOf(run stromboli.Run) []stromboli.Warning {
	all := make([]stromboli.Warning, 0, len(run.Warnings)+len(run.Outcome.Warnings))
	seen := make(map[stromboli.Warning]bool)
	for _, list := range [][]stromboli.Warning{run.Warnings, run.Outcome.Warnings} {
		for _, w := range list {
			if !seen[w] {
				seen[w] = true
				all = append(all, w)
			}
		}
	}
	return all
}

// failureText is a sentence for a run that ended badly and said nothing.
func failureText(run stromboli.Run) string {
	switch {
	case run.Outcome.Error != "":
		return run.Outcome.Error
	case run.Status == stromboli.Cancelled && run.Outcome.Reason == stromboli.ReasonDisconnect:
		return "the run was cancelled because its caller went away"
	case run.Status == stromboli.Cancelled:
		return "the run was cancelled"
	case run.Outcome.Reason != "":
		return "the run failed: " + string(run.Outcome.Reason)
	default:
		return "the run failed"
	}
}

func toJob(run stromboli.Run) jobResponse {
	return jobResponse{
		ID: stromboli.JobID(run.ID), Status: run.Status, result: resultOf(run), Kind: run.Kind,
		Metadata: run.Spec.Metadata, Network: run.Network, CreatedAt: run.CreatedAt.UTC(), UpdatedAt: run.UpdatedAt.UTC(),
	}
}

// toRun gives the answer of a finished run and its status.
func toRun(run stromboli.Run, requestID string) (int, runResponse) {
	resp := runResponse{ID: run.ID, Status: "error", result: resultOf(run)}
	status := http.StatusInternalServerError
	switch run.Status {
	case stromboli.Completed, stromboli.Crashed:
		resp.Status = string(run.Status)
		return http.StatusOK, resp
	case stromboli.Cancelled:
		status = http.StatusConflict
	case stromboli.Failed, stromboli.Pending, stromboli.Running:
		switch run.Outcome.Reason {
		case stromboli.ReasonTimeout:
			status = http.StatusGatewayTimeout
		case stromboli.ReasonNotConfigured, stromboli.ReasonEngine:
			status = http.StatusServiceUnavailable
		default:
		}
	}
	resp.Code, resp.RequestID = string(run.Outcome.Reason), requestID
	if resp.Code == "" {
		resp.Code = string(stromboli.Internal)
	}
	return status, resp
}
