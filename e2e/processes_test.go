package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestProcesses: what must outlive a server is in no session and no process
// group of the server's, and the sandbox's own processes are in no cgroup of
// it. So a service manager that ends the server alone (KillMode=process), or a
// terminal that hangs up, ends nothing else.
func TestProcesses(t *testing.T) {
	s := start(t)
	id := s.submit(t, spec(modelstub.Step{Hang: "before"}))
	s.waitPhase(id, stromboli.PhaseGenerating)
	boxes := s.sandboxes()
	if len(boxes) != 1 {
		t.Fatalf("sandboxes: %v", boxes)
	}
	c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+boxes[0])
	if err != nil {
		t.Fatal(err)
	}
	conmon, _, _ := processIDs(t, c.PID)
	_, group, session := processIDs(t, s.cmd.Process.Pid)
	for name, pid := range map[string]int{"egress": s.egressPID(), "shim": c.PID, "conmon": conmon} {
		if _, g, n := processIDs(t, pid); g == group || n == session {
			t.Errorf("%s (pid %d) is in the server's process group %d or session %d", name, pid, group, session)
		}
	}
	info, err := suite.engine.Info(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if own := processCgroups(t, s.cmd.Process.Pid); info.EnforcesLimits && slices.Equal(own, processCgroups(t, c.PID)) {
		t.Errorf("the shim is in the server's cgroups: %v", own)
	}
	if err := s.c.Cancel(s.ctx(), id); err != nil {
		t.Error(err)
	}
}

// processIDs reads a process's parent, process group and session.
func processIDs(t *testing.T, pid int) (parent, group, session int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // state, ppid, pgrp, session
	var out [3]int
	for i := range out {
		if out[i], err = strconv.Atoi(fields[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return out[0], out[1], out[2]
}

func processCgroups(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}
