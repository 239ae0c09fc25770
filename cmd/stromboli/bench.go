package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/modelstub"
	"github.com/tomblancdev/stromboli/internal/setup"
)

type benchCommand struct {
	Rounds  int    `default:"25" help:"Interleaved rounds of each way to start an agent."`
	Runs    int    `default:"20" help:"Runs at once when memory is measured."`
	Bursts  int    `default:"3" help:"Rounds of twenty runs at once against twenty of podman run."`
	Probes  int    `default:"5" help:"Rounds of requests and streams through egress against direct ones."`
	Guarded int    `default:"50" help:"Rounds of starts with all hardening against starts with all of it off."`
	Only    string `default:"" enum:",starts,bursts,guarded,egress,reads" help:"Measure this part alone: starts, bursts, guarded, egress or reads."`
	Out     string `default:"build/bench.json" help:"File for the figures."`
}

// Help is shown after the flags.
func (benchCommand) Help() string {
	return "Measures, side by side and against the same scripted model: the CLI alone, the CLI by `podman run`, and POST /run. What the figures mean is told in docs/performance.md."
}

// figure is one line of the result.
type figure struct {
	Name    string  `json:"name"`
	N       int     `json:"n"`
	Median  float64 `json:"median"`
	P99     float64 `json:"p99"`
	Unit    string  `json:"unit"`
	Against string  `json:"against,omitempty"` // the figure that the ratio compares with
	Ratio   float64 `json:"ratio,omitempty"`
}

// benchRig is what all measurements share.
type benchRig struct {
	dir    string
	cli    string // directory of the agent CLI
	image  string
	model  string // base URL of the scripted model
	podman []string
	env    []string // of podman
	server *benchServer
	show   io.Writer
}

const benchPrompt = `Say pong. stub: {"steps":[{"text":"pong"}]}`

// Run measures and writes the figures.
func (c benchCommand) Run(ctx context.Context, p process) (err error) {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/tmp", "sb")
	if err != nil {
		return err
	}
	rig := &benchRig{dir: dir, show: p.stderr}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	engine, err := rig.prepare(ctx, cfg, p)
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, engine.StopService(stop))
	}()

	modelCtx, stopModel := context.WithCancel(ctx)
	defer stopModel()
	addr := make(chan net.Addr, 1)
	served := make(chan error, 1)
	go func() {
		served <- modelstub.ListenAndServe(modelCtx, "127.0.0.1:0", modelstub.New(), func(a net.Addr) { addr <- a })
	}()
	select {
	case a := <-addr:
		rig.model = "http://" + a.String()
	case err := <-served:
		return err
	}
	var figures []figure
	for _, part := range []struct {
		name    string
		measure func(context.Context, *benchRig, *podman.Client, process) ([]figure, error)
	}{{"starts", c.measure}, {"bursts", c.bursts}, {"guarded", c.guarded}, {"egress", c.egress}, {"reads", c.reads}} {
		if c.Only != "" && c.Only != part.name {
			continue
		}
		found, err := part.measure(ctx, rig, engine, p)
		if err != nil {
			return err
		}
		figures = append(figures, found...)
	}
	printFigures(p.stdout, figures)
	return writeFigures(c.Out, figures)
}

func (r *benchRig) prepare(ctx context.Context, cfg *config.Config, p process) (*podman.Client, error) {
	base := setup.Config{CacheDir: cfg.CacheDir, Env: p.environ}
	cli, err := setup.CLI(ctx, base)
	if err != nil {
		return nil, err
	}
	r.cli = cli.Path
	engine, err := podman.Open(ctx, podman.OpenConfig{
		Host: cfg.ContainerHost, Dir: filepath.Join(r.dir, "engine"), AllowOwnService: true, Environ: p.environ, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	r.podman, r.env = engine.CLIArgs()
	image, err := setup.AgentImage(ctx, setup.ImageConfig{Config: base, Podman: r.podman, PodmanEnv: r.env})
	if err != nil {
		return engine, err
	}
	r.image = image.Name
	return engine, nil
}

// measure alternates the ways in one run, so that a busy moment of the machine
// hits all of them.
func (c benchCommand) measure(ctx context.Context, rig *benchRig, engine *podman.Client, p process) ([]figure, error) {
	server, err := startBenchServer(ctx, rig, engine, p, "data", "STROMBOLI_RUNS_MAX="+strconv.Itoa(c.Runs))
	if err != nil {
		return nil, err
	}
	rig.server = server
	defer server.stop(context.WithoutCancel(ctx))
	idle, err := server.memory(ctx)
	if err != nil {
		return nil, err
	}
	times := map[string][]float64{}
	ways := []struct {
		name string
		once func(context.Context, int) (map[string]time.Duration, error)
	}{{"claude_bare", rig.bare}, {"podman_run", rig.podmanRun}, {"run_cold", rig.runCold}}
	for round := range c.Rounds + 1 {
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			took, err := w.once(ctx, round)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", w.name, round, err)
			}
			if round == 0 { // warms the page cache
				continue
			}
			for name, d := range took {
				times[name] = append(times[name], milliseconds(d))
			}
		}
		_, _ = fmt.Fprintf(rig.show, "\rbench: round %d of %d", round, c.Rounds)
	}
	_, _ = fmt.Fprintln(rig.show)
	var out []figure
	for _, name := range []string{"claude_bare", "podman_run", "run_cold", "submit_to_start", "run_cold_engine", "run_cold_cli"} {
		out = append(out, summary(name, "ms", times[name]))
	}
	compare(out, "podman_run", "claude_bare")
	compare(out, "run_cold", "podman_run")
	perRun, err := server.memoryPerRun(ctx, c.Runs, idle)
	if err != nil {
		return nil, err
	}
	return append(out, summary("memory_idle", "MiB", []float64{idle}), summary("memory_per_run", "MiB", []float64{perRun})), nil
}

func summary(name, unit string, values []float64) figure {
	f := figure{Name: name, N: len(values), Unit: unit}
	if len(values) == 0 {
		return f
	}
	s := slices.Sorted(slices.Values(values))
	f.Median = s[len(s)/2]
	f.P99 = s[min(len(s)-1, len(s)*99/100)]
	return f
}

func compare(figures []figure, name, against string) {
	var base float64
	for _, f := range figures {
		if f.Name == against {
			base = f.Median
		}
	}
	for i := range figures {
		if figures[i].Name == name && base > 0 {
			figures[i].Against, figures[i].Ratio = against, figures[i].Median/base
		}
	}
}

func printFigures(w io.Writer, figures []figure) {
	_, _ = fmt.Fprintf(w, "%-18s %4s %10s %10s\n", "", "n", "median", "p99")
	for _, f := range figures {
		_, _ = fmt.Fprintf(w, "%-18s %4d %10.1f %10.1f %s", f.Name, f.N, f.Median, f.P99, f.Unit)
		if f.Against != "" {
			_, _ = fmt.Fprintf(w, "   %.2f × %s", f.Ratio, f.Against)
		}
		_, _ = fmt.Fprintln(w)
	}
}

func writeFigures(path string, figures []figure) error {
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a build directory
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644) //nolint:gosec // for everyone
}
