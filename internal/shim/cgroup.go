package shim

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// oomCounter reads how many processes of this sandbox the kernel has killed
// for memory. The zero value knows of none.
type oomCounter struct{ path string }

// findOOMCounter looks for the memory cgroup of this process below root, in
// either cgroup version, and whether or not the mount shows the host's tree.
func findOOMCounter(root, procCgroup string) oomCounter {
	b, err := os.ReadFile(procCgroup)
	if err != nil {
		return oomCounter{}
	}
	var candidates []string
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[0] == "0":
			candidates = append(candidates,
				filepath.Join(root, f[2], "memory.events"), filepath.Join(root, "memory.events"))
		case hasController(f[1], "memory"):
			// v1 has the controller, so the unified tree beside it counts nothing.
			candidates = append([]string{
				filepath.Join(root, "memory", f[2], "memory.oom_control"),
				filepath.Join(root, "memory", "memory.oom_control"),
			}, candidates...)
		}
	}
	for _, path := range candidates {
		c := oomCounter{path}
		if _, ok := c.read(); ok {
			return c
		}
	}
	return oomCounter{}
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// read returns the count; false when it can't be told.
func (c oomCounter) read() (int64, bool) {
	if c.path == "" {
		return 0, false
	}
	b, err := os.ReadFile(c.path)
	if err != nil {
		return 0, false
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// agentOOMScore is what the agent's processes add to their share of memory
// when the kernel chooses whom to kill: them, never the shim.
const agentOOMScore = 500

const oomScoreFile = "/proc/self/oom_score_adj"

// offerToOOMKiller makes processes that are started from now on the kernel's
// choice when memory runs out, until the returned function is called. A process
// inherits the value and may raise its own; lowering it again to what it was
// needs no capability. Where it can't be set, all are equal, as ever.
func offerToOOMKiller() (restore func()) {
	own, err := os.ReadFile(oomScoreFile)
	if err != nil {
		return func() {}
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil || score >= agentOOMScore {
		return func() {}
	}
	write := func(n int) error { return os.WriteFile(oomScoreFile, []byte(strconv.Itoa(n)), 0) }
	if write(agentOOMScore) != nil {
		return func() {}
	}
	return func() { _ = write(score) } // else the shim is as likely as the agent, no worse
}
