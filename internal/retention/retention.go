// Package retention deletes what is remembered for a while only.
//
// It owns when that is done and how much at a time; what may go is decided by those
// who keep it, in the moment in which it goes. It promises that no kind's failure
// keeps another from being swept, that a thing which can't be deleted doesn't keep
// others of its kind, and that two sweeps of one process don't run at once. A sweep
// may be cut short anywhere; the next goes on.
package retention

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/tomblancdev/stromboli"
)

const (
	batch = 200 // things that are listed at a time
	told  = 3   // faults of a kind that are told
	// maxFaults is after how many faults in a row a kind is left for the next sweep:
	// what all of it stands on may be broken.
	maxFaults = 100
)

// Kind is one kind of thing and how long it is kept.
type Kind struct {
	Name    string
	Setting string        // the variable that says how long; empty: there is none
	Age     time.Duration // 0, with a Setting: for ever
	// Sweep deletes what is older than before, or with dry only counts it. What it
	// returns beside an error was done all the same.
	Sweep func(ctx context.Context, before time.Time, dry bool) (Swept, error)
}

// Swept is what a sweep deleted.
type Swept struct {
	Count int64 `json:"count"`
	// Bytes of it, as far as they are known.
	Bytes int64 `json:"bytes"`
}

// Result is what became of a kind in a sweep.
type Result struct {
	Kind    string `json:"kind"`
	Setting string `json:"setting,omitempty"`
	Age     string `json:"age"` // a duration, "for ever", or "until it expires"
	Swept
	Error string `json:"error,omitempty"`
}

// Sweeper sweeps kinds in their order.
type Sweeper struct {
	kinds []Kind
	log   *slog.Logger
	now   func() time.Time

	sweeping chan struct{} // one slot
}

// New returns a Sweeper, which sweeps when it is told to.
func New(kinds []Kind, log *slog.Logger) *Sweeper {
	return &Sweeper{kinds: kinds, log: log, now: time.Now, sweeping: make(chan struct{}, 1)}
}

// Sweep sweeps every kind, or counts what would go, and tells of each. It waits for
// another sweep to end. The error is ctx's.
func (s *Sweeper) Sweep(ctx context.Context, dry bool) ([]Result, error) {
	select {
	case s.sweeping <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.sweeping }()
	results := make([]Result, 0, len(s.kinds))
	for _, k := range s.kinds {
		results = append(results, s.sweep(ctx, k, dry))
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
	}
	return results, nil
}

func (s *Sweeper) sweep(ctx context.Context, k Kind, dry bool) Result {
	r := Result{Kind: k.Name, Setting: k.Setting, Age: k.Age.String()}
	switch {
	case k.Setting == "":
		r.Age = "until it expires"
	case k.Age <= 0:
		r.Age = "for ever"
		return r
	}
	var err error
	r.Swept, err = k.Sweep(ctx, s.now().Add(-k.Age), dry)
	if err != nil && ctx.Err() == nil {
		r.Error = err.Error()
		s.log.WarnContext(ctx, "sweeping "+k.Name, "error", err)
	}
	if r.Count > 0 && !dry {
		s.log.InfoContext(ctx, "swept "+k.Name, "count", r.Count, "bytes", r.Bytes)
	}
	return r
}

// Each calls do for the things that list tells of, page by page: list gets the last
// thing of the page before, do returns the bytes that went and whether the thing
// did. Things that fail are passed over; where what they stand on doesn't answer the
// rest is left.
func Each[T any](ctx context.Context, list func(ctx context.Context, after T, limit int) ([]T, error), do func(context.Context, T) (bytes int64, gone bool, err error)) (Swept, error) {
	var swept Swept
	var faults []error
	inARow := 0
	var last T
	for {
		page, err := list(ctx, last, batch)
		if err != nil || len(page) == 0 {
			return swept, errors.Join(append(faults, err)...)
		}
		for _, thing := range page {
			if err := ctx.Err(); err != nil {
				return swept, err
			}
			n, gone, err := do(ctx, thing)
			if gone {
				swept.Count++
				swept.Bytes += n
			}
			if err == nil {
				inARow = 0
				continue
			}
			inARow++
			if len(faults) < told {
				faults = append(faults, err)
			}
			if down(err) || inARow == maxFaults {
				return swept, errors.Join(faults...)
			}
		}
		last = page[len(page)-1]
	}
}

// down reports whether an error is that of what all things of a kind stand on.
func down(err error) bool {
	return slices.Contains([]stromboli.Code{stromboli.ArchiveDown, stromboli.EngineDown, stromboli.StorageFull}, stromboli.CodeOf(err))
}
