package apitest

import (
	"context"
	"slices"
	"strconv"
	"sync"

	"github.com/tomblancdev/stromboli"
)

// Outbox implements api.Webhooks with the deliveries that a test puts into it,
// newest last.
type Outbox struct {
	mu  sync.Mutex
	all []stromboli.Delivery
}

// Add puts a delivery into it.
func (o *Outbox) Add(d stromboli.Delivery) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, d)
}

// Deliveries implements api.Webhooks; a cursor is a number of rows to leave out.
func (o *Outbox) Deliveries(_ context.Context, p stromboli.Principal, f stromboli.DeliveryFilter) ([]stromboli.Delivery, string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	from := 0
	if f.Cursor != "" {
		n, err := strconv.Atoi(f.Cursor)
		if err != nil || n < 0 {
			return nil, "", stromboli.FieldError("cursor", "is not a cursor")
		}
		from = n
	}
	var list []stromboli.Delivery
	for _, d := range slices.Backward(o.all) {
		if d.Tenant == p.Tenant && (f.RunID == "" || f.RunID == d.RunID) && (len(f.Statuses) == 0 || slices.Contains(f.Statuses, d.Status)) {
			list = append(list, d)
		}
	}
	list = list[min(from, len(list)):]
	if len(list) > f.Limit {
		return list[:f.Limit], strconv.Itoa(from + f.Limit), nil
	}
	return list, "", nil
}

// Redeliver implements api.Webhooks; nothing is sent.
func (o *Outbox) Redeliver(_ context.Context, p stromboli.Principal, id string) (stromboli.Delivery, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, d := range o.all {
		switch {
		case d.ID != id || d.Tenant != p.Tenant:
			continue
		case d.Status == stromboli.DeliverySending:
			return d, stromboli.Errorf(stromboli.Conflict, "the delivery %s is being sent", id)
		}
		o.all[i].Status = stromboli.DeliveryPending
		return o.all[i], nil
	}
	return stromboli.Delivery{}, stromboli.Errorf(stromboli.NotFound, "there is no delivery %q", id)
}
