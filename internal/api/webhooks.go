package api

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// deliveryBody is a delivery as the API shows it, without its URL, which may
// hold a secret.
type deliveryBody struct {
	// ID is the header webhook-id, the same at each attempt.
	ID    string `json:"id"`
	JobID string `json:"job_id"`
	// Host is host:port of the URL.
	Host string `json:"host"`
	// Status: pending, sending, delivered or dead.
	Status   stromboli.DeliveryStatus `json:"status"`
	Attempts int                      `json:"attempts"`
	// LastStatus is the HTTP status of the newest attempt's answer.
	LastStatus int `json:"last_status,omitempty"`
	// LastError says why the newest attempt failed.
	LastError string `json:"last_error,omitempty"`
	// NextAttemptAt is there while it is pending.
	NextAttemptAt time.Time `json:"next_attempt_at,omitzero"`
	CreatedAt     time.Time `json:"created_at"`
	UpdatedAt     time.Time `json:"updated_at"`
	FinishedAt    time.Time `json:"finished_at,omitzero"`
}

func deliveryOf(d stromboli.Delivery) deliveryBody {
	return deliveryBody{
		ID: d.ID, JobID: stromboli.JobID(d.RunID), Host: d.Host, Status: d.Status, Attempts: d.Attempts, LastStatus: d.LastStatus, LastError: d.LastError,
		NextAttemptAt: d.NextAt.UTC(), CreatedAt: d.CreatedAt.UTC(), UpdatedAt: d.UpdatedAt.UTC(), FinishedAt: d.FinishedAt.UTC(),
	}
}

type deliveryList struct {
	Deliveries []deliveryBody `json:"deliveries"`
	NextCursor string         `json:"next_cursor,omitempty"`
	HasMore    bool           `json:"has_more"`
}

// listDeliveries answers a page of the webhooks' deliveries.
func (a *API) listDeliveries(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	q, err := query(r)
	if err != nil {
		return err
	}
	f, err := deliveriesOf(q)
	if err != nil {
		return err
	}
	deliveries, next, err := a.cfg.Webhooks.Deliveries(r.Context(), p, f)
	if err != nil {
		return err
	}
	list := deliveryList{Deliveries: make([]deliveryBody, 0, len(deliveries)), NextCursor: next, HasMore: next != ""}
	for _, d := range deliveries {
		list.Deliveries = append(list.Deliveries, deliveryOf(d))
	}
	a.answer(w, r, http.StatusOK, list)
	return nil
}

func deliveriesOf(q url.Values) (stromboli.DeliveryFilter, error) {
	f := stromboli.DeliveryFilter{Cursor: q.Get("cursor")}
	once := maps.Clone(q)
	if len(once["status"]) > 1 { // it alone may be given several times
		once["status"] = once["status"][:1]
	}
	if err := onlyParams(once, "status", "job_id", "limit", "cursor"); err != nil {
		return f, err
	}
	limit, err := intParam(q, "limit", 1, maxPage, maxPage)
	if err != nil {
		return f, err
	}
	f.Limit = int(limit)
	statuses := []string{
		string(stromboli.DeliveryPending), string(stromboli.DeliverySending), string(stromboli.DeliveryDelivered), string(stromboli.DeliveryDead),
	}
	for _, s := range values(q, "status") {
		if !slices.Contains(statuses, s) {
			return f, stromboli.FieldError("status", "must be one of %s", strings.Join(statuses, ", "))
		}
		f.Statuses = append(f.Statuses, stromboli.DeliveryStatus(s))
	}
	if job := q.Get("job_id"); job != "" {
		id, ok := stromboli.ParseRunID(job)
		if !ok {
			return f, stromboli.FieldError("job_id", "is not the id of a job")
		}
		f.RunID = id
	}
	return f, nil
}

// redeliver has a delivery sent again.
func (a *API) redeliver(w http.ResponseWriter, r *http.Request, p stromboli.Principal) error {
	body, err := a.readBody(w, r)
	if err != nil {
		return err
	}
	if len(body) > 0 { // it may say nothing, but not something that is passed over
		if err := decodeStrictly(body, &struct{}{}); err != nil {
			return err
		}
	}
	ctx, cancel := detach(r)
	defer cancel()
	d, err := a.cfg.Webhooks.Redeliver(ctx, p, clip(r.PathValue("id")))
	if err != nil {
		return err
	}
	a.answer(w, r, http.StatusOK, deliveryOf(d))
	return nil
}
