package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
)

const burstRuns = 20

// bursts alternates two ways to get twenty answers: POST /run twenty times at
// once, on a server that decides itself how many it executes at a time, and
// `podman run` two at a time.
func (c benchCommand) bursts(ctx context.Context, rig *benchRig, engine *podman.Client, p process) ([]figure, error) {
	server, err := startBenchServer(ctx, rig, engine, p, "burst")
	if err != nil {
		return nil, err
	}
	defer server.stop(context.WithoutCancel(ctx))
	if _, err := server.run(ctx, "/run", benchSpec()); err != nil {
		return nil, err
	}
	var atOnce, byTwo []float64
	for round := range c.Bursts {
		ways := []func() error{
			func() error {
				took, err := burst(ctx, burstRuns, func(ctx context.Context, _ int) error {
					_, err := server.run(ctx, "/run", benchSpec())
					return err
				})
				atOnce = append(atOnce, milliseconds(took))
				return err
			},
			func() error {
				took, err := burst(ctx, 2, func(ctx context.Context, n int) error {
					_, err := rig.podmanRun(ctx, 1000*(round+1)+n)
					return err
				})
				byTwo = append(byTwo, milliseconds(took))
				return err
			},
		}
		for i := range ways {
			if err := ways[(i+round)%len(ways)](); err != nil {
				return nil, fmt.Errorf("%d runs, round %d: %w", burstRuns, round, err)
			}
			// What one way left to be cleaned up is not the other's burden.
			if err := server.empty(ctx); err != nil {
				return nil, fmt.Errorf("waiting for sandboxes to be discarded: %w", err)
			}
		}
		_, _ = fmt.Fprintf(rig.show, "\rbench: burst %d of %d", round+1, c.Bursts)
	}
	_, _ = fmt.Fprintln(rig.show)
	out := []figure{summary("podman_20_by_2", "ms", byTwo), summary("runs_20_cold", "ms", atOnce)}
	compare(out, "runs_20_cold", "podman_20_by_2")
	return out, nil
}

// burst does a thing burstRuns times, so many at a time, and tells how long
// all of it took. The first error ends it.
func burst(ctx context.Context, width int, once func(context.Context, int) error) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	numbers := make(chan int, burstRuns)
	for n := range burstRuns {
		numbers <- n
	}
	close(numbers)
	begin := time.Now()
	var workers sync.WaitGroup
	for range width {
		workers.Go(func() {
			for n := range numbers {
				if ctx.Err() != nil {
					return
				}
				if err := once(ctx, n); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return time.Since(begin), context.Cause(ctx)
}

func benchSpec() stromboli.RunSpec {
	return stromboli.RunSpec{Prompt: benchPrompt, Claude: stromboli.ClaudeOptions{OutputFormat: stromboli.OutputJSON}}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// empty waits until the server has discarded every sandbox.
func (s *benchServer) empty(ctx context.Context) error {
	return poll(ctx, time.Minute, func() (bool, error) {
		left, err := os.ReadDir(filepath.Join(s.data, "sb"))
		return len(left) == 0, err
	})
}
