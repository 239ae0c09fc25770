package client_test

import (
	"errors"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

func TestDeliveries(t *testing.T) {
	fake := apitest.New()
	addr, _ := serve(t, fake, "127.0.0.1:0")
	c := dial(t, addr)
	run := stromboli.NewRunID(time.Now())
	for _, d := range []stromboli.Delivery{{ID: "msg-1", Status: stromboli.DeliveryDead}, {ID: "msg-2", Status: stromboli.DeliverySending}} {
		d.Tenant, d.RunID, d.Host = stromboli.DefaultTenant, run, "a.example:443"
		fake.Box.Add(d)
	}
	page, err := c.Deliveries(t.Context(), client.DeliveryFilter{JobID: run, Statuses: []stromboli.DeliveryStatus{stromboli.DeliveryDead, stromboli.DeliverySending}, Limit: 1})
	if err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].ID != "msg-2" || page.Deliveries[0].JobID != stromboli.JobID(run) || !page.HasMore {
		t.Fatalf("%+v, %v", page, err)
	}
	if page, err = c.Deliveries(t.Context(), client.DeliveryFilter{Cursor: page.NextCursor}); err != nil || len(page.Deliveries) != 1 || page.Deliveries[0].Host != "a.example:443" {
		t.Errorf("%+v, %v", page, err)
	}
	if d, err := c.Redeliver(t.Context(), "msg-1"); err != nil || d.Status != stromboli.DeliveryPending {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := c.Redeliver(t.Context(), "msg-2"); !errors.Is(err, stromboli.Conflict) {
		t.Errorf("while it is sent: %v", err)
	}
	if _, err := c.Redeliver(t.Context(), "msg/../3"); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("one that isn't there: %v", err)
	}
}
