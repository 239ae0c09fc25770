package shim

import "sync"

// budget bounds a hook's output, both streams together.
type budget struct {
	mu      sync.Mutex
	used    int64
	dropped int64
}

// take returns the whole records of b that are within the budget, and counts
// the bytes of the others.
func (b *budget) take(records []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := 0
	for at < len(records) && b.dropped == 0 && b.used+recordSize(records[at:]) <= hookOutput {
		n := recordSize(records[at:])
		b.used, at = b.used+n, at+int(n)
	}
	for rest := records[at:]; len(rest) > 0; rest = rest[recordSize(rest):] {
		b.dropped += recordSize(rest) - recordHeader + 1 // and its newline
	}
	return records[:at]
}

// over is how many bytes were left out.
func (b *budget) over() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}
