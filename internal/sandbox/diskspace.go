package sandbox

import (
	"context"
	"math"
	"runtime"
	"time"
)

// MeasureDir adds up what a directory takes of the disk, by the rules of the
// measurement of sandboxes, and on a budget of its own of the same size: less
// than a hundredth of a CPU, so that it takes a while where there are many
// files. What is closed to this process, and what moves meanwhile, may not be
// counted. A directory that is missing takes nothing.
func MeasureDir(ctx context.Context, path string) (int64, error) {
	runtime.LockOSThread() // whose clock is the cost
	defer runtime.UnlockOSThread()
	w := newWalk(path)
	defer w.close()
	p := pace{share: meterShare, last: time.Now(), used: threadTime()}
	for more := true; more; {
		if wait := p.wait(time.Now(), threadTime()); wait > 0 {
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(wait):
			}
			continue
		}
		var err error
		if more, err = w.step(meterStep); err != nil && len(w.levels) == 0 {
			return 0, err
		}
	}
	return w.bytes, nil
}

// Space is the free space of a file system, and how much of it new runs leave
// alone.
type Space struct{ Free, Reserve int64 }

// Space is that where the server keeps its data or its sandboxes write, where
// the free space is nearest to the reserve.
func (m *Manager) Space() (Space, error) {
	least := Space{Free: math.MaxInt64}
	var failed error
	for _, path := range m.places() {
		free, reserve, err := m.spaceAt(path)
		if err != nil {
			failed = err
			continue
		}
		if s := (Space{clamp(free), clamp(reserve)}); s.Free-s.Reserve < least.Free-least.Reserve {
			least = s
		}
	}
	if least.Free == math.MaxInt64 {
		return Space{}, failed
	}
	return least, nil
}
