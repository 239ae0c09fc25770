package api

import (
	"sync"
	"time"
)

// mostBuckets bounds the keys of a generation of buckets; two are kept.
const mostBuckets = 1 << 16

// buckets are token buckets by key: each holds burst tokens and gets one more
// every so often. What is stored of a bucket is the time at which it is full
// again, so one that is full needn't be stored.
//
// Keys are kept in two generations. The old one is dropped when the young one
// takes its place: no earlier than all in it must be full again, or when the
// young one has mostBuckets keys. So memory is bounded whatever keys come, and
// who has more addresses than that to send from is counted less strictly.
type buckets[K comparable] struct {
	every time.Duration // one token
	burst int
	start time.Time // times are kept as what has passed since

	mu         sync.Mutex
	young, old map[K]time.Duration
	turned     time.Duration
}

func newBuckets[K comparable](perSecond float64, burst int) *buckets[K] {
	every := max(time.Duration(float64(time.Second)/perSecond), time.Nanosecond)
	return &buckets[K]{every: every, burst: burst, start: time.Now(), young: make(map[K]time.Duration)}
}

// level is a bucket's state.
type level struct {
	remaining int
	full      time.Duration // until it is full
	retry     time.Duration // until there is a token; zero: there is
}

// take takes a token, if there is one.
func (b *buckets[K]) take(key K) level {
	return b.change(key, func(l level) bool { return l.retry == 0 })
}

// look takes none.
func (b *buckets[K]) look(key K) level { return b.change(key, func(level) bool { return false }) }

// charge takes one that may not be there: those who come at once owe it. The
// debt is bounded by the burst.
func (b *buckets[K]) charge(key K) { b.change(key, func(level) bool { return true }) }

// change tells a bucket's level, and takes a token where take says so, given
// the level before; then the level told is the one after.
func (b *buckets[K]) change(key K, take func(level) bool) level {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Since(b.start)
	whole := time.Duration(b.burst) * b.every
	full, known := b.young[key]
	if !known {
		full = b.old[key]
	}
	full = max(full, now)
	before := level{
		remaining: max(0, int((now+whole-full)/b.every)), full: full - now,
		retry: max(0, full+b.every-whole-now),
	}
	if !take(before) {
		return before
	}
	full = min(full+b.every, now+2*whole)
	b.store(key, full, now, 2*whole)
	return level{remaining: max(0, int((now+whole-full)/b.every)), full: full - now}
}

// store remembers when a bucket is full; life is the longest that can take.
func (b *buckets[K]) store(key K, full, now, life time.Duration) {
	if now-b.turned >= life || len(b.young) >= mostBuckets {
		b.old, b.young, b.turned = b.young, make(map[K]time.Duration), now
	}
	b.young[key] = full
}
