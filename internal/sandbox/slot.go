package sandbox

import (
	"context"
	"sync"
	"time"
)

// settleTime is how long the agent of a new sandbox counts as starting if
// nobody says that it has begun.
const settleTime = 1500 * time.Millisecond

// slots bound how many agents start at a time. A start, the container's making
// and the CLI's own, keeps a CPU busy: more of them at once than there are CPUs
// only delay each other.
type slots chan struct{}

// take waits for a slot; free gives it back and may be called again.
func (s slots) take(ctx context.Context) (free func(), err error) {
	select {
	case s <- struct{}{}:
		return sync.OnceFunc(func() { <-s }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Begun says that the agent has printed something: the next one may start.
func (s *Sandbox) Begun() {
	if s.begun != nil {
		s.begun()
	}
}
