package main

import (
	"context"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine/podman"
)

// unguarded switches off all of the hardening that can be.
func unguarded() []string {
	return []string{
		"STROMBOLI_SANDBOX_USERNS=none", "STROMBOLI_SANDBOX_SECCOMP=unconfined", "STROMBOLI_SANDBOX_SYSCALL_FILTER=false",
		"STROMBOLI_SANDBOX_READ_ONLY_ROOT=false", "STROMBOLI_SANDBOX_MASKED_PATHS=false",
		"STROMBOLI_SANDBOX_IPCNS=host", "STROMBOLI_SANDBOX_UTSNS=host", "STROMBOLI_SANDBOX_CGROUPNS=host",
		"STROMBOLI_SANDBOX_PIDS_LIMIT=0", "STROMBOLI_SANDBOX_OPEN_FILES=0", "STROMBOLI_RESOURCES_MEMORY=0", "STROMBOLI_RESOURCES_CPUS=0", "STROMBOLI_RESOURCES_DISK=0",
	}
}

// idle waits until a server's sandboxes are gone: the other's next start must not
// share the engine with that.
func (s *benchServer) idle(ctx context.Context, engine *podman.Client) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		left, err := engine.List(ctx, map[string]string{"stromboli.instance": instance(s.data)})
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the end of %d sandboxes: %w", len(left), ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// guarded measures what the hardening costs a start: from the container's making
// to the end of its attestation, on a server with all of it and, in turn, on one
// with all of it off that can be.
func (c benchCommand) guarded(ctx context.Context, rig *benchRig, engine *podman.Client, p process) ([]figure, error) {
	var times [2][]float64
	var servers [2]*benchServer
	for i, c := range []struct {
		name    string
		environ []string
	}{{"open", unguarded()}, {"guarded", nil}} {
		server, err := startBenchServer(ctx, rig, engine, p, c.name, c.environ...)
		if err != nil {
			return nil, err
		}
		defer server.stop(context.WithoutCancel(ctx))
		servers[i] = server
	}
	var added []float64
	for round := range c.Guarded + 1 {
		var took [2]float64
		for i := range servers {
			which := (i + round) % 2
			id, err := servers[which].run(ctx, "/run", benchSpec())
			if err != nil {
				return nil, fmt.Errorf("guarded starts, round %d: %w", round, err)
			}
			parts, err := servers[which].timing(ctx, id)
			if err != nil {
				return nil, err
			}
			took[which] = milliseconds(time.Duration(parts.EngineUS) * time.Microsecond)
			if err := servers[which].idle(ctx, engine); err != nil {
				return nil, err
			}
		}
		if round == 0 { // warms the page cache
			continue
		}
		times[0], times[1], added = append(times[0], took[0]), append(times[1], took[1]), append(added, took[1]-took[0])
		_, _ = fmt.Fprintf(rig.show, "\rbench: guarded start, round %d of %d", round, c.Guarded)
	}
	_, _ = fmt.Fprintln(rig.show)
	out := []figure{summary("run_cold_open", "ms", times[0]), summary("run_cold_guarded", "ms", times[1]), summary("run_cold_guarded_added", "ms", added)}
	compare(out, "run_cold_guarded", "run_cold_open")
	return out, nil
}
