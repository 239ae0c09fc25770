package sandbox

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli"
)

// reserveShare is the part of a file system that new runs leave alone where
// nothing else was configured, up to reserveMost.
const (
	reserveShare = 50 // one fiftieth
	reserveMost  = 1 << 30
)

// places are where this server and its sandboxes write.
func (m *Manager) places() []string { return []string{m.cfg.DataDir, m.cfg.Sessions, m.cfg.Shared} }

// Room answers stromboli.StorageFull while there is less free space than the
// reserve where the server keeps its data or its sandboxes write. What runs
// already goes on.
func (m *Manager) Room() error {
	for _, path := range m.places() {
		free, reserve, err := m.spaceAt(path)
		if err != nil || free >= reserve { // what can't be asked is told of by whoever writes there
			continue
		}
		return &stromboli.Error{
			Code: stromboli.StorageFull, RetryAfter: 30 * time.Second,
			Message: fmt.Sprintf("no new run is started: %s is free at %s, less than the reserve of %s (STROMBOLI_DISK_RESERVE)",
				size(clamp(free)), path, size(clamp(reserve))),
		}
	}
	return nil
}

// space is the free space where it is scarcest of all, and whether that is
// below the reserve.
func (m *Manager) space() (free uint64, scarce bool) {
	free = math.MaxUint64
	for _, path := range m.places() {
		if here, reserve, err := m.spaceAt(path); err == nil {
			free = min(free, here)
			scarce = scarce || here < reserve
		}
	}
	return free, scarce
}

func (m *Manager) spaceAt(path string) (free, reserve uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, err
	}
	block := uint64(max(st.Bsize, 0))
	if m.cfg.DiskReserve >= 0 {
		return st.Bavail * block, uint64(m.cfg.DiskReserve), nil
	}
	return st.Bavail * block, min(st.Blocks*block/reserveShare, reserveMost), nil
}

func clamp(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
