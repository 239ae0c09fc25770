package shim

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// CgroupLimits are what the kernel enforces on the sandbox's processes
// together; -1 where there is no limit, or none that can be read.
type CgroupLimits struct {
	MemoryBytes int64 `json:"memory_bytes"`
	// SwapBytes is swap beyond the memory.
	SwapBytes int64 `json:"swap_bytes"`
	NanoCPUs  int64 `json:"nano_cpus"`
	Pids      int64 `json:"pids"`
	// CPUShares and CPUWeight are the relative weight under contention: the
	// first in cgroup v1, the second in v2.
	CPUShares int64 `json:"cpu_shares"`
	CPUWeight int64 `json:"cpu_weight"`
}

// readCgroupLimits reads them in either cgroup version, and whether or not the
// mount shows the host's tree.
func readCgroupLimits(root, procCgroup string) CgroupLimits {
	none := CgroupLimits{-1, -1, -1, -1, -1, -1}
	b, err := os.ReadFile(procCgroup)
	if err != nil {
		return none
	}
	places := map[string][]string{} // by v1 controller; "" is v2
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" {
			places[""] = []string{filepath.Join(root, f[2]), root}
		}
		for controller := range strings.SplitSeq(f[1], ",") {
			if controller != "" && f[0] != "0" {
				places[controller] = []string{
					filepath.Join(root, f[1], f[2]), filepath.Join(root, f[1]), filepath.Join(root, controller, f[2]), filepath.Join(root, controller),
				}
			}
		}
	}
	read := func(controller, name string) []string {
		for _, dir := range places[controller] {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				return strings.Fields(string(b))
			}
		}
		return nil
	}
	l := none
	if _, v1 := places["memory"]; v1 {
		l.MemoryBytes = limit(read("memory", "memory.limit_in_bytes"), 0)
		if both := limit(read("memory", "memory.memsw.limit_in_bytes"), 0); both >= 0 && l.MemoryBytes >= 0 {
			l.SwapBytes = both - l.MemoryBytes
		}
	} else {
		l.MemoryBytes, l.SwapBytes = limit(read("", "memory.max"), 0), limit(read("", "memory.swap.max"), 0)
	}
	if _, v1 := places["pids"]; v1 {
		l.Pids = limit(read("pids", "pids.max"), 0)
	} else {
		l.Pids = limit(read("", "pids.max"), 0)
	}
	var quota, period int64
	if _, v1 := places["cpu"]; v1 {
		quota, period = limit(read("cpu", "cpu.cfs_quota_us"), 0), limit(read("cpu", "cpu.cfs_period_us"), 0)
		l.CPUShares = limit(read("cpu", "cpu.shares"), 0)
	} else {
		max := read("", "cpu.max")
		quota, period = limit(max, 0), limit(max, 1)
		l.CPUWeight = limit(read("", "cpu.weight"), 0)
	}
	if quota > 0 && period > 0 {
		l.NanoCPUs = quota * 1e9 / period
	}
	return l
}

// limit is the number in a cgroup's file; "max", and v1's largest number for
// it, is none.
func limit(fields []string, i int) int64 {
	if i >= len(fields) {
		return -1
	}
	n, err := strconv.ParseInt(fields[i], 10, 64)
	if err != nil || n < 0 || n >= 1<<62 {
		return -1
	}
	return n
}
