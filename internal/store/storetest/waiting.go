package storetest

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func testWaiting(t *testing.T, f *fixture) {
	want := func(what string, want store.Waiting) {
		t.Helper()
		got, err := f.Waiting(t.Context())
		if err != nil || !got.Oldest.Equal(want.Oldest) || got.Deliveries != want.Deliveries || got.Dead != want.Dead {
			t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
		}
	}
	want("nothing", store.Waiting{})
	first := f.create(t, f.newRun(stromboli.KindAsync))
	f.clock.add(time.Minute)
	second := f.create(t, f.newRun(stromboli.KindAsync))
	want("two runs", store.Waiting{Oldest: first.CreatedAt})
	if _, ok, err := f.ClaimPending(t.Context(), "one"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	want("the older one has started", store.Waiting{Oldest: second.CreatedAt})
	if _, ok, err := f.ClaimPending(t.Context(), "one"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	f.owed(t, "https://a.example/")
	f.owed(t, "https://a.example/")
	want("two deliveries", store.Waiting{Deliveries: 2})
	d := f.claim(t, 1, 1)[0]
	want("one is being sent", store.Waiting{Deliveries: 2})
	if err := f.FinishDelivery(t.Context(), d.ID, d.Attempts, stromboli.DeliveryResult{Status: stromboli.DeliveryDead}); err != nil {
		t.Fatal(err)
	}
	want("it is given up", store.Waiting{Deliveries: 1, Dead: 1})
}
