package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The meter's pace. Its thread's own clock says what a step has cost; before
// the next one it waits until all of it together is below the share again.
// Where free space is below the reserve, finding out who takes it is worth more.
const (
	meterShare  = 0.008                 // of one CPU
	meterUrgent = 0.1                   // of one CPU
	meterBurst  = 20 * time.Millisecond // what may be saved up
	// meterQuantum is what it waits for once nothing is left: to wake up costs too.
	meterQuantum = 3 * time.Millisecond
	meterStep    = 256 // entries

	// A sandbox is measured as often as one thousandth of a CPU allows, within
	// these bounds; at once when its file system has lost much since.
	meterOften  = time.Second
	meterSeldom = 30 * time.Second
	meterWorse  = 64 << 20 // bytes of free space lost that are worth another look
)

// diskUse is what is known of a sandbox's use of the disk.
type diskUse struct {
	paths []string               // what is measured
	root  atomic.Pointer[string] // and this, where the root file system can be written
	bytes atomic.Int64
	over  chan struct{} // closed once the limit is passed
	why   string        // set before over is closed
}

func (m *Manager) newDiskUse(rec record) *diskUse {
	d := &diskUse{
		paths: []string{m.ownPath(rec, "home"), m.ownPath(rec, "workspace"), filepath.Join(m.dir(rec.ID), "tmp")},
		over:  make(chan struct{}),
	}
	d.measureRoot(rec.RootDir)
	return d
}

// measureRoot has the directory measured too that holds what was changed in a
// writable root; empty: there is none.
func (d *diskUse) measureRoot(dir string) {
	if dir != "" {
		d.root.Store(&dir)
	}
}

func (d *diskUse) all() []string {
	if root := d.root.Load(); root != nil {
		return append(slices.Clone(d.paths), *root)
	}
	return d.paths
}

// DiskOver is closed once the sandbox takes more of the disk than its limit;
// DiskWhy is the sentence for its caller then.
func (s *Sandbox) DiskOver() <-chan struct{} { return s.disk.over }

// DiskWhy says by how much, and what can be done.
func (s *Sandbox) DiskWhy() string { return s.disk.why }

// metered is a sandbox that the meter looks at from time to time.
type metered struct {
	box       *Sandbox
	namespace string // of its processes; empty: not to be seen
	asked     bool   // the engine has said which

	walk    *walk    // nil between two measurements
	deleted *deleted // after the walk
	cost    time.Duration
	due     time.Time
	ended   time.Time // the last measurement
	free    uint64    // free space when it began
}

// Meter measures what running sandboxes take of the disk until ctx ends, which
// it returns as nil. It closes DiskOver of those that take more than the limit.
//
// Counted are the sandbox's own directories: home, workspace and /tmp, and
// deleted files in them that are still open, and what was changed in a writable
// root. Everything else is read-only, in memory, or the caller's (volumes). Quotas of the file system are not used: see
// docs/ARCHITECTURE.md.
func (m *Manager) Meter(ctx context.Context) error {
	if m.cfg.DiskLimit <= 0 {
		<-ctx.Done()
		return nil
	}
	runtime.LockOSThread() // whose clock is the cost
	defer runtime.UnlockOSThread()
	mt := m.newMeter()
	defer mt.close()
	for {
		wait := mt.round(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

type meter struct {
	m     *Manager
	boxes map[string]*metered
	pace  pace
}

func (m *Manager) newMeter() *meter {
	return &meter{m: m, boxes: make(map[string]*metered), pace: pace{share: meterShare, last: time.Now(), used: threadTime()}}
}

// round gives each sandbox that is due one step, and tells when to come again.
func (mt *meter) round(ctx context.Context) time.Duration {
	now := time.Now()
	mt.sync()
	free, scarce := mt.m.space()
	mt.pace.share = meterShare
	if scarce {
		mt.pace.share = meterUrgent
	}
	next := meterOften
	for _, b := range mt.boxes {
		if wait := mt.pace.wait(time.Now(), threadTime()); wait > 0 {
			return wait
		}
		if b.walk == nil && mt.m.hasLost(b, free, now) {
			b.due = now
		}
		if b.walk == nil && b.due.After(now) {
			next = min(next, b.due.Sub(now))
			continue
		}
		before := threadTime()
		more := mt.measure(ctx, b, free)
		if b.cost += threadTime() - before; more {
			next = 0
			continue
		}
		b.ended = time.Now()
		b.due = b.ended.Add(min(max(1000*b.cost, meterOften), meterSeldom))
		next = min(next, b.due.Sub(now))
	}
	return max(next, mt.pace.wait(time.Now(), threadTime()))
}

// hasLost reports whether a file system has lost so much since a sandbox was
// measured that it might be to blame.
func (m *Manager) hasLost(b *metered, free uint64, now time.Time) bool {
	if now.Sub(b.ended) < meterOften || free >= b.free {
		return false
	}
	left := max(m.cfg.DiskLimit-b.box.disk.bytes.Load(), 0)
	return b.free-free > uint64(max(left/4, meterWorse))
}

// sync takes up sandboxes that have been started and lets go of others.
func (mt *meter) sync() {
	mt.m.mu.Lock()
	var fresh []*Sandbox
	for id, box := range mt.m.boxes {
		if old := mt.boxes[id]; box.started.Load() && (old == nil || old.box != box) {
			fresh = append(fresh, box)
		}
	}
	for id, b := range mt.boxes {
		if mt.m.boxes[id] != b.box || b.isOver() {
			b.reset()
		}
		if mt.m.boxes[id] != b.box {
			delete(mt.boxes, id)
		}
	}
	mt.m.mu.Unlock()
	for _, box := range fresh {
		mt.boxes[box.ID] = &metered{box: box}
	}
}

// findNamespace finds out the pid namespace of a sandbox. It is not to be seen
// by a server in a container: the engine's pids are another namespace's there.
func (m *Manager) findNamespace(ctx context.Context, b *metered) {
	if b.asked = b.asked || m.cfg.Container; b.asked {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := m.cfg.Engine.Inspect(ctx, containerName(b.box.ID))
	if err != nil {
		return // the next time
	}
	b.asked = true
	own, err := pidNamespace(os.Getpid())
	if theirs, terr := pidNamespace(c.PID); err == nil && terr == nil && theirs != own {
		b.namespace = theirs
	}
}

func (b *metered) isOver() bool {
	select {
	case <-b.box.disk.over:
		return true
	default:
		return false
	}
}

func (b *metered) reset() {
	if b.walk != nil {
		b.walk.close()
	}
	if b.deleted != nil {
		b.deleted.close()
	}
	b.walk, b.deleted = nil, nil
}

// measure does one step, and reports whether there is more to do. A sandbox
// that is over its limit is told of at once and never measured again.
func (mt *meter) measure(ctx context.Context, b *metered, free uint64) (more bool) {
	if b.isOver() {
		return false
	}
	if b.walk == nil {
		mt.m.findNamespace(ctx, b)
		b.walk, b.cost, b.free = newWalk(b.box.disk.all()...), 0, free
	}
	more, err := b.step()
	if err != nil {
		mt.m.log.Debug("measuring a sandbox", "sandbox", b.box.ID, "run_id", b.box.RunID, "error", err)
	}
	use := b.walk.bytes
	if b.deleted != nil {
		use += b.deleted.bytes
	}
	limit := mt.m.cfg.DiskLimit
	switch {
	case b.walk.tooDeep:
		b.over(fmt.Sprintf("directories are nested more than %d deep, so that the use of the disk can't be measured", nestedDeepest))
		return false
	case use > limit:
		b.over(fmt.Sprintf("the sandbox takes %s of the disk in its home, workspace, /tmp and root, and its limit is %s: "+
			"remove what the session doesn't need, begin a new session, or raise STROMBOLI_RESOURCES_DISK", size(use), size(limit)))
		return false
	case !more:
		b.box.disk.bytes.Store(use)
		b.reset()
	}
	return more
}

func (b *metered) step() (more bool, err error) {
	if b.deleted == nil {
		if more, err = b.walk.step(meterStep); more {
			return true, err
		}
		if b.namespace == "" {
			return false, err
		}
		b.deleted = &deleted{namespace: b.namespace, devs: b.walk.devs}
		return true, err
	}
	return b.deleted.step(meterStep / 4)
}

func (b *metered) over(why string) {
	b.reset()
	b.box.disk.why = why
	close(b.box.disk.over)
}

func (mt *meter) close() {
	for _, b := range mt.boxes {
		b.reset()
	}
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 10<<30 {
		return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// pace keeps what a thread uses of a CPU below a share of the time.
type pace struct {
	share  float64
	credit time.Duration // what it may use before it has to wait
	last   time.Time
	used   time.Duration // by then
}

// wait is how long nothing more may be used, at a time by which the thread has
// used so much.
func (p *pace) wait(now time.Time, used time.Duration) time.Duration {
	p.credit += time.Duration(p.share*float64(now.Sub(p.last))) - (used - p.used)
	p.credit = min(p.credit, meterBurst)
	p.last, p.used = now, used
	if p.credit >= 0 {
		return 0
	}
	return time.Duration(float64(meterQuantum-p.credit) / p.share)
}

// threadTime is what this thread has used of a CPU.
func threadTime() time.Duration {
	var ts unix.Timespec
	if errors.Is(unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts), unix.EINVAL) {
		return 0
	}
	return time.Duration(ts.Nano())
}
