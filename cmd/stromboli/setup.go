package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/setup"
)

type setupCommand struct {
	Image bool `help:"Prepare the agent image as well."`
	Musl  bool `help:"Fetch the CLI's build for images without glibc as well."`
}

// Run fetches what is missing; a second call takes milliseconds.
func (c setupCommand) Run(ctx context.Context, p process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	show := &progressPrinter{w: p.stderr}
	base := setup.Config{CacheDir: cfg.CacheDir, Env: p.environ, Progress: show.print}
	cli, err := setup.CLI(ctx, base)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(p.stdout, "agent CLI %s: %s\n", cli.Version, cli.Binary)
	if c.Musl {
		musl := base
		musl.Libc = setup.Musl
		if cli, err = setup.CLI(ctx, musl); err != nil {
			return err
		}
		loader, err := setup.MuslLoader(ctx, musl)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(p.stdout, "agent CLI %s for musl: %s (loader %s)\n", cli.Version, cli.Binary, loader)
	}
	if !c.Image {
		return nil
	}
	return c.image(ctx, p, cfg, base)
}

func (setupCommand) image(ctx context.Context, p process, cfg *config.Config, base setup.Config) (err error) {
	// The engine's own directory lies in the data directory: the image must
	// come into the store that the server will use.
	engine, err := podman.Open(ctx, podman.OpenConfig{
		Host: cfg.ContainerHost, Dir: filepath.Join(cfg.DataDir, "engine"), AllowOwnService: true,
		Environ: p.environ, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(ctx, cfg.DataDir, engine)) }()
	argv, env := engine.CLIArgs()
	image, err := setup.AgentImage(ctx, setup.ImageConfig{Config: base, Podman: argv, PodmanEnv: env})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(p.stdout, "agent image: %s (%s)\n", image.Name, image.How)
	return nil
}

// release ends the engine's service if it is one of ours and no server uses it.
func release(ctx context.Context, dataDir string, engine *podman.Client) error {
	defer engine.Close()
	if !engine.Own() {
		return nil
	}
	dir, err := openDataDir(dataDir)
	if errors.As(err, new(errInUse)) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	return errors.Join(engine.StopService(ctx), dir.close())
}

// progressPrinter prints steps as they begin, and what a long one is doing at
// most once a second.
type progressPrinter struct {
	w    io.Writer
	step string
	last time.Time
}

func (p *progressPrinter) print(s setup.Progress) {
	if s.Step == p.step && time.Since(p.last) < time.Second {
		return
	}
	p.step, p.last = s.Step, time.Now()
	const mb = 1 << 20
	switch {
	case s.Total > 0:
		_, _ = fmt.Fprintf(p.w, "stromboli: %s: %s %d of %d MB\n", s.Step, s.Message, s.Done/mb, s.Total/mb)
	case s.Done > 0:
		_, _ = fmt.Fprintf(p.w, "stromboli: %s: %s %d MB\n", s.Step, s.Message, s.Done/mb)
	default:
		_, _ = fmt.Fprintf(p.w, "stromboli: %s: %s\n", s.Step, s.Message)
	}
}
