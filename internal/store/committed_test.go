package store_test

import (
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// Each transaction is told of, with the writes that it was of.
func TestCommitted(t *testing.T) {
	var mu sync.Mutex
	var writes int
	s := open(t, store.Config{Committed: func(took time.Duration, n int, err error) {
		mu.Lock()
		defer mu.Unlock()
		writes += n
		if took <= 0 || err != nil {
			t.Errorf("%v, %v", took, err)
		}
	}})
	for range 3 {
		if _, err := s.DeleteExpiredIdempotency(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// A write that is refused is no fault of the transaction.
	if _, err := s.RequestCancel(t.Context(), stromboli.CancelRequest{RunID: "run-none", Reason: stromboli.ReasonRequest}); stromboli.CodeOf(err) != stromboli.NotFound {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if writes != 4 {
		t.Errorf("%d writes", writes)
	}
}
