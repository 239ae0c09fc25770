package api

import (
	"errors"
	"net/http"
	"strings"

	"github.com/tomblancdev/stromboli"
)

type egressList struct {
	Records   []stromboli.EgressRecord `json:"records"`
	NextAfter int64                    `json:"next_after"`
	HasMore   bool                     `json:"has_more"`
}

// jobEgress answers a page of the records of a run's connections.
func (a *API) jobEgress(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	if err := onlyParams(q, "after", "limit"); err != nil {
		return err
	}
	after, limit, err := pageOf(q)
	if err != nil {
		return err
	}
	id, err := runID(r)
	if err != nil {
		return err
	}
	records, err := a.cfg.Runs.Egress(r.Context(), p, id, after, limit+1) // one more tells whether there is more
	if err != nil {
		return err
	}
	list := egressList{Records: make([]stromboli.EgressRecord, 0, len(records)), NextAfter: after, HasMore: len(records) > limit}
	list.Records = append(list.Records, records[:min(len(records), limit)]...)
	if n := len(list.Records); n > 0 {
		list.NextAfter = list.Records[n-1].Seq
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

// setNetwork replaces what a run may reach.
func (a *API) setNetwork(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	id, err := runID(r)
	if err != nil {
		return err
	}
	var wish stromboli.Network
	if err := a.readInto(w, r, &wish); err != nil {
		return err
	}
	ctx, cancel := detach(r)
	defer cancel()
	network, err := a.cfg.Runs.SetNetwork(ctx, p, id, wish)
	if err != nil {
		return ofNetwork(err)
	}
	a.answer(w, r, http.StatusOK, network)
	return nil
}

// ofNetwork names fields as they are in a body that is a network itself.
func ofNetwork(err error) error {
	e, ok := errors.AsType[*stromboli.Error](err)
	if !ok || len(e.Details) == 0 {
		return err
	}
	renamed := *e
	renamed.Message = strings.TrimPrefix(e.Message, "network.")
	renamed.Details = nil
	for _, d := range e.Details {
		renamed.Details = append(renamed.Details, stromboli.Detail{Field: strings.TrimPrefix(d.Field, "network."), Message: d.Message})
	}
	return &renamed
}
