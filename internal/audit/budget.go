package audit

import (
	"sync"
	"time"
)

// What strangers cause is recorded up to noteBurst at once, then noteRate per
// second: 25 MB a day at most.
const (
	noteBurst = 600
	noteRate  = 1
)

// budget bounds the records of what strangers do. Its zero value is full.
type budget struct {
	mu     sync.Mutex
	used   float64
	at     time.Time
	missed int
}

// take reports whether one more may be recorded, and how many before it were not.
func (b *budget) take(now time.Time) (missed int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if gone := now.Sub(b.at); gone > 0 {
		b.used = max(0, b.used-gone.Seconds()*noteRate)
	}
	b.at = now
	if b.used+1 > noteBurst {
		b.missed++
		return 0, false
	}
	b.used++
	missed, b.missed = b.missed, 0
	return missed, true
}
