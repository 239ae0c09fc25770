package sandbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestSlots: no more start at a time than there are slots, one that is given
// back twice counts once, and whoever waits in vain may go away.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := make(slots, 2)
		first, err := s.take(t.Context())
		must(t, err)
		_, err = s.take(t.Context())
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			_, err := s.take(ctx)
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("a third took a slot: %v", err)
		}
		first()
		first()
		_, err = s.take(t.Context())
		must(t, err)
		if len(s) != 2 {
			t.Errorf("%d slots are taken", len(s))
		}
	})
}
