package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tomblancdev/stromboli/internal/egress"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

type egressCommand struct {
	Dir  string `required:"" help:"Directory of the control socket; made if missing."`
	Stay bool   `help:"Don't end when nobody needs it: for a service that something else keeps running."`
}

const forever = 100 * 365 * 24 * time.Hour

// Run serves sandboxes until nobody needs it any more.
func (c egressCommand) Run(ctx context.Context, p process) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("egress: %w", err)
	}
	var idle time.Duration // the default
	if c.Stay {
		idle = forever
	}
	return egress.Serve(ctx, egress.ServeConfig{
		IdleTimeout: idle, AbandonAfter: idle, Dir: c.Dir, Build: build(self), Demo: modelstub.Demo(),
		Log: slog.New(slog.NewTextHandler(p.stderr, nil)),
	})
}

// build names this very program: a server of another build replaces the egress
// process that it finds. The file's time tells builds of one version apart.
func build(self string) string {
	name := version + " " + commit
	if info, err := os.Stat(self); err == nil {
		name += " " + info.ModTime().UTC().Format(time.RFC3339Nano)
	}
	return name
}

// egressPID is the process that serves a data directory's sandboxes.
func egressPID(ctx context.Context, dataDir string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status, err := egress.NewClient(filepath.Join(dataDir, "egress")).Status(ctx)
	return status.PID, err
}
