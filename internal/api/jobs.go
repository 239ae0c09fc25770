package api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// maxPage is the most rows or events in one answer, and the default.
const maxPage = 1000

type jobList struct {
	Jobs       []jobResponse `json:"jobs"`
	NextCursor string        `json:"next_cursor,omitempty"`
	HasMore    bool          `json:"has_more"`
}

func (a *API) listJobs(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	f, err := filterOf(q)
	if err != nil {
		return err
	}
	runs, next, err := a.cfg.Runs.List(r.Context(), p, f)
	if err != nil {
		return err
	}
	list := jobList{Jobs: make([]jobResponse, 0, len(runs)), NextCursor: next, HasMore: next != ""}
	for _, run := range runs {
		list.Jobs = append(list.Jobs, toJob(run))
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

func filterOf(q url.Values) (stromboli.RunFilter, error) {
	f := stromboli.RunFilter{SessionID: q.Get("session_id"), Cursor: q.Get("cursor"), Metadata: map[string]string{}}
	limit, err := intParam(q, "limit", 1, maxPage, maxPage)
	if err != nil {
		return f, err
	}
	f.Limit = int(limit)
	if f.Since, err = timeParam(q, "since"); err != nil {
		return f, err
	}
	statuses := []string{"pending", "running", "completed", "failed", "crashed", "cancelled"}
	for _, s := range values(q, "status") {
		if !slices.Contains(statuses, s) {
			return f, stromboli.FieldError("status", "must be one of %s", strings.Join(statuses, ", "))
		}
		f.Statuses = append(f.Statuses, stromboli.Status(s))
	}
	kinds := values(q, "kind")
	if len(kinds) == 0 {
		kinds = []string{string(stromboli.KindAsync)}
	}
	for _, k := range kinds {
		if !slices.Contains([]string{"async", "sync", "stream", "all"}, k) {
			return f, stromboli.FieldError("kind", "must be one of async, sync, stream, all")
		}
		f.Kinds = append(f.Kinds, stromboli.Kind(k))
	}
	if slices.Contains(kinds, "all") {
		f.Kinds = nil
	}
	for name, v := range q {
		if key, ok := strings.CutPrefix(name, "metadata."); ok {
			if key == "" || len(v) != 1 {
				return f, stromboli.FieldError(join("", name), "needs one key and one value")
			}
			f.Metadata[key] = v[0]
		}
	}
	return f, nil
}

// values takes a parameter's values, given repeatedly or with commas.
func values(q url.Values, name string) []string {
	var all []string
	for _, v := range q[name] {
		for s := range strings.SplitSeq(v, ",") {
			if s != "" {
				all = append(all, s)
			}
		}
	}
	return all
}

// job finds the run that the path names.
func (a *API) job(r *http.Request, p stromboli.Principal) (stromboli.Run, error) {
	id, err := runID(r)
	if err != nil {
		return stromboli.Run{}, err
	}
	return a.cfg.Runs.Get(r.Context(), p, id)
}

func (a *API) getJob(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	run, err := a.job(r, p)
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, toJob(run))
	return nil
}

// jobAttestation answers what was in force for a run's sandbox.
func (a *API) jobAttestation(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	id, err := runID(r)
	if err != nil {
		return err
	}
	attestation, err := a.cfg.Runs.Attestation(r.Context(), p, id)
	if err != nil {
		return err
	}
	for _, l := range []*[]string{&attestation.Devices, &attestation.Interfaces, &attestation.Masked, &attestation.Unenforced} {
		*l = append([]string{}, *l...) // a list is never null
	}
	a.answer(w, r, http.StatusOK, attestation)
	return nil
}

// jobCancelled is the answer to the wish to end a run.
type jobCancelled struct {
	JobID     string `json:"job_id"`
	Cancelled bool   `json:"cancelled"`
}

func (a *API) cancelJob(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	id, err := runID(r)
	if err != nil {
		return err
	}
	ctx, cancel := detach(r)
	defer cancel()
	run, err := a.cfg.Runs.Cancel(ctx, p, id, stromboli.ReasonRequest)
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, jobCancelled{stromboli.JobID(run.ID), true})
	return nil
}
