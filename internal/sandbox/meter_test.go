package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// box makes a sandbox without a container, in a manager that has a limit of the
// disk.
func (f *fixture) box(t *testing.T, id string) *Sandbox {
	t.Helper()
	rec := record{ID: id, SessionID: "s-" + id}
	box := &Sandbox{record: rec, disk: f.newDiskUse(rec)}
	for _, dir := range []string{f.ownPath(box.record, "home"), f.ownPath(box.record, "workspace"), filepath.Join(f.Manager.dir(id), "tmp")} {
		must(t, os.MkdirAll(dir, 0o700))
	}
	box.started.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[id] = box
	return box
}

func limited(bytes int64) func(*Config) { return func(c *Config) { c.DiskLimit = bytes } }

// metering runs the meter for the rest of the test.
func (f *fixture) metering(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Meter(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

func soon(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("not soon:", what)
	}
}

// TestMeter: each of a sandbox's places counts, whatever it holds, and others
// than the one that takes too much are left alone.
func TestMeter(t *testing.T) {
	t.Parallel()
	const limit = 4 << 20
	f := newFixture(t, limited(limit))
	f.metering(t)
	well := f.box(t, "well")
	writeBytes(t, filepath.Join(f.ownPath(well.record, "home"), "a"), limit/2)
	must(t, os.WriteFile(filepath.Join(f.ownPath(well.record, "home"), "sparse"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(f.ownPath(well.record, "home"), "sparse"), 1<<40))
	for _, place := range []string{"home", "workspace", "tmp", "small"} {
		box := f.box(t, place)
		dir := f.ownPath(box.record, place)
		if place == "tmp" || place == "small" {
			dir = filepath.Join(f.Manager.dir(box.ID), "tmp")
		}
		if place == "small" {
			for i := range limit / fileCost {
				writeBytes(t, filepath.Join(dir, fmt.Sprint(i)), 0)
			}
		} else {
			writeBytes(t, filepath.Join(dir, "a"), limit+1)
		}
		soon(t, place, box.DiskOver())
		if why := box.DiskWhy(); !strings.Contains(why, "limit is 4 MiB") || !strings.Contains(why, "STROMBOLI_RESOURCES_DISK") {
			t.Error(why)
		}
	}
	deep := f.box(t, "deep")
	chain(t, f.ownPath(deep.record, "home"), nestedDeepest/8) // a block each: over the limit as well
	soon(t, "deep", deep.DiskOver())
	select {
	case <-well.DiskOver():
		t.Error("what is below the limit is over it")
	default:
	}
}

// TestMeterDeleted: a file counts that has no name any more, as long as a
// process of the sandbox has it open.
func TestMeterDeleted(t *testing.T) {
	f := newFixture(t, limited(1<<20))
	box := f.box(t, "a")
	ns, err := pidNamespace(os.Getpid())
	must(t, err)
	path := filepath.Join(f.ownPath(box.record, "home"), "f")
	writeBytes(t, path, 2<<20)
	file, err := os.Open(path)
	must(t, err)
	must(t, os.Remove(path))
	mt := f.newMeter()
	mt.sync()
	b := mt.boxes["a"]
	b.asked, b.namespace = true, ns
	for mt.measure(t.Context(), b, 0) {
	}
	soon(t, "a deleted file", box.DiskOver())
	must(t, file.Close())
}

// TestMeterCost: however much there is to be measured, the meter takes less
// than a hundredth of a CPU; and a sandbox with a large tree doesn't keep it
// from another one.
func TestMeterCost(t *testing.T) {
	t.Parallel()
	f := newFixture(t, limited(1<<40))
	f.cfg.DataDir = memDir(t)
	f.cfg.Sessions, f.cfg.Shared = filepath.Join(f.cfg.DataDir, "s"), f.cfg.DataDir
	box := f.box(t, "large")
	for i := range 40_000 {
		must(t, unix.Mkfifo(filepath.Join(f.ownPath(box.record, "home"), fmt.Sprint(i)), 0o600))
	}
	small := f.box(t, "small")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, used := time.Now(), threadTime()
	mt := f.newMeter()
	defer mt.close()
	measured := 0
	for time.Since(began) < 4*time.Second {
		wait := mt.round(t.Context())
		if small.disk.bytes.Swap(0) > 0 {
			measured++
		}
		<-time.After(wait)
	}
	share := float64(threadTime()-used) / float64(time.Since(began))
	t.Logf("%.2f %% of a CPU; the small sandbox was measured %d times", 100*share, measured)
	if share > 0.01 {
		t.Errorf("the meter took %.2f %% of a CPU", 100*share)
	}
	if measured < 2 || box.disk.bytes.Load() > 0 && mt.boxes["large"].cost < 20*time.Millisecond {
		t.Errorf("the small one was measured %d times, the large one cost %s", measured, mt.boxes["large"].cost)
	}
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace{share: meterShare, last: time.Now()}
		began, spent := time.Now(), time.Duration(0)
		for time.Since(began) < time.Minute {
			if wait := p.wait(time.Now(), spent); wait > 0 {
				<-time.After(wait)
				continue
			}
			spent += 3 * time.Millisecond
		}
		if share := float64(spent) / float64(time.Since(began)); share < 0.0078 || share > 0.0081 {
			t.Errorf("%f", share)
		}
		<-time.After(time.Hour)
		if p.wait(time.Now(), spent); p.credit != meterBurst {
			t.Errorf("%s were saved up", p.credit)
		}
	})
}

// TestHasLost: a sandbox is measured again at once when as much is gone as
// might bring it near its limit.
func TestHasLost(t *testing.T) {
	f := newFixture(t, limited(1<<30))
	now := time.Now()
	b := &metered{box: f.box(t, "a"), free: 10 << 30, ended: now.Add(-2 * time.Second)}
	for lost, want := range map[uint64]bool{0: false, 100 << 20: false, 300 << 20: true} {
		if f.hasLost(b, 10<<30-lost, now) != want {
			t.Errorf("after %d MiB", lost>>20)
		}
	}
	b.box.disk.bytes.Store(900 << 20)
	if !f.hasLost(b, 10<<30-100<<20, now) {
		t.Error("near its limit less is enough")
	}
	b.ended = now
	if f.hasLost(b, 0, now) {
		t.Error("it was measured only now")
	}
}

func TestRoom(t *testing.T) {
	var st unix.Statfs_t
	must(t, unix.Statfs(t.TempDir(), &st))
	free := int64(st.Bavail) * st.Bsize
	for _, c := range []struct {
		reserve int64
		full    bool
	}{{0, false}, {1, false}, {free + 64<<30, true}} {
		f := newFixture(t, func(cfg *Config) { cfg.DiskReserve = c.reserve })
		err := f.Room()
		e, ok := errors.AsType[*stromboli.Error](err)
		if ok != c.full || c.full && (e.Code != stromboli.StorageFull || e.RetryAfter == 0 || !strings.Contains(e.Message, "STROMBOLI_DISK_RESERVE")) {
			t.Errorf("reserve %d: %v", c.reserve, err)
		}
	}
	f := newFixture(t, func(cfg *Config) { cfg.DiskReserve = -1 })
	if _, reserve, err := f.spaceAt(f.root); err != nil || reserve == 0 || reserve > reserveMost {
		t.Errorf("a reserve of %d, %v", reserve, err)
	}
}
