package store_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/store"
)

// TestDeliveryPlans: no statement about deliveries reads all of them, or sorts
// more than the pages that it joins.
func TestDeliveryPlans(t *testing.T) {
	s := open(t, store.Config{})
	plans, err := s.DeliveryPlans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for query, plan := range plans {
		for _, step := range plan {
			// Hosts are looked through in the order of their turn: only those that
			// have enough are passed over, and they are few.
			scan := strings.HasPrefix(step, "SCAN") && step != "SCAN CONSTANT ROW" && !strings.HasPrefix(step, "SCAN (subquery") &&
				!strings.HasPrefix(step, "SCAN webhook_hosts USING COVERING INDEX webhook_hosts_due")
			if scan || strings.Contains(step, "TEMP B-TREE") && !strings.Contains(query, "run_id") && !strings.Contains(query, "UNION") {
				t.Errorf("%s\n%s", query, strings.Join(plan, "\n"))
				break
			}
		}
	}
}

// BenchmarkDeliveries claims while 100,000 deliveries wait, for one host and
// for as many.
func BenchmarkDeliveries(b *testing.B) {
	const waiting = 100_000
	for _, hosts := range []int{1, waiting} {
		b.Run(fmt.Sprint(hosts, "_hosts"), func(b *testing.B) {
			s := open(b, store.Config{})
			if err := s.OweMany(b.Context(), waiting, hosts); err != nil {
				b.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for b.Loop() {
				if _, err := s.ClaimDeliveries(b.Context(), 4, 4); err != nil { // of one host there are none to claim after the first
					b.Fatal(err)
				}
				if _, _, err := s.NextDelivery(b.Context(), 4); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "heap-KiB")
		})
	}
}
