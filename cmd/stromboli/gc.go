package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/store"
	"github.com/tomblancdev/stromboli/internal/telemetry"
	"github.com/tomblancdev/stromboli/internal/unixsock"
)

type gcCommand struct {
	DryRun bool `help:"Delete nothing; tell what would go."`
	JSON   bool `name:"json" help:"Print what went as JSON."`
}

// Help is shown after the flags.
func (gcCommand) Help() string {
	return "Sweeps once, by the STROMBOLI_RETENTION_ settings; docs/retention.md has the table of what is deleted when. " +
		"Where a server uses the data directory, that server sweeps, by its own settings. Exit code 1: something could not be deleted."
}

// Run sweeps once.
func (c gcCommand) Run(ctx context.Context, p process) error {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	results, err := c.sweep(ctx, cfg, p)
	if err != nil {
		return err
	}
	return c.print(p.stdout, results)
}

func (c gcCommand) sweep(ctx context.Context, cfg *config.Config, p process) (results []retention.Result, err error) {
	s := server{cfg: cfg, environ: p.environ, logs: telemetry.NewLog(telemetry.LogConfig{Writer: p.stderr, Level: slog.LevelWarn})}
	s.dir, err = openDataDir(cfg.DataDir)
	if errors.As(err, new(errInUse)) {
		return askForGC(ctx, cfg.DataDir, c.DryRun)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.dir.close()) }()
	if err := s.places(); err != nil {
		return nil, err
	}
	if s.store, err = store.Open(ctx, store.Config{Path: filepath.Join(s.dir.path, databaseFile), KeepIdempotency: cfg.Retention.IdempotencyKeys}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }() //nolint:contextcheck // closing is not cut short
	if s.blobs, err = blob.Open(filepath.Join(s.dir.path, "blobs")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.blobs.Close()) }()
	if s.archive, s.closeArchive, err = openArchive(cfg, p.environ, s.store, s.blobs, s.logs.Part("archive")); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.closeArchive()) }()
	if s.audit, err = openAudit(ctx, cfg, s.logs.Part("server")); err != nil {
		return nil, err
	}
	if s.audit != nil {
		defer func() { err = errors.Join(err, s.audit.Close()) }()
	}
	if s.image, err = defaultImage(cfg, p.environ); err != nil {
		return nil, err
	}
	// Without an engine everything else is swept all the same.
	s.engine, s.engineErr = podman.Open(ctx, podman.OpenConfig{
		Host: cfg.ContainerHost, Dir: filepath.Join(s.dir.path, "engine"), AllowOwnService: true, Environ: p.environ, Log: slog.New(slog.DiscardHandler),
	})
	if s.engineErr == nil {
		defer func() { err = errors.Join(err, s.leaveEngine(ctx)) }()
	}
	s.boxes = sandbox.New(sandbox.Config{DataDir: s.dir.path, Sessions: cfg.SessionsDir(), Shared: cfg.SharedDir(), Logger: s.logs.Part("sandbox")})
	s.runner = runner.New(runner.Config{Store: s.store, Sandboxes: s.boxes, Blobs: s.blobs, Archives: s.archive, Logger: s.logs.Part("runner")})
	return s.newSweeper().Sweep(ctx, c.DryRun)
}

// leaveEngine ends a service of ours that nobody needs.
func (s *server) leaveEngine(ctx context.Context) error {
	defer s.engine.Close()
	if !s.engine.Own() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	return s.engine.StopService(ctx)
}

func (c gcCommand) print(w io.Writer, results []retention.Result) error {
	failed := false
	if c.JSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(gcAnswer{DryRun: c.DryRun, Results: results}); err != nil {
			return err
		}
	} else {
		verb := "deleted"
		if c.DryRun {
			verb = "would be deleted"
		}
		_, _ = fmt.Fprintf(w, "%-18s %-17s %10s  %s\n", "kind", "kept", "count", "bytes, where known ("+verb+")")
	}
	for _, r := range results {
		failed = failed || r.Error != ""
		if c.JSON {
			continue
		}
		_, _ = fmt.Fprintf(w, "%-18s %-17s %10d  %d\n", r.Kind, r.Age, r.Count, r.Bytes)
		if r.Error != "" {
			_, _ = fmt.Fprintf(w, "%18s → %s\n", "", r.Error)
		}
	}
	if failed {
		return exitError(1)
	}
	return nil
}

// gcAnswer is what a sweep has done.
type gcAnswer struct {
	DryRun  bool               `json:"dry_run"`
	Results []retention.Result `json:"results"`
}

// gcSocket is where a server can be told to sweep: by whoever may enter its data
// directory.
func gcSocket(dataDir string) string { return filepath.Join(dataDir, "gc.sock") }

// serveGC sweeps when it is asked to, until ctx ends.
func (s *server) serveGC(ctx context.Context) error {
	ln, err := unixsock.Listen(gcSocket(s.dir.path))
	if err != nil { // such as a full disk: what can't be asked for is done every hour all the same
		s.log.WarnContext(ctx, "`stromboli gc` can't reach this server", "error", err)
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /gc", func(w http.ResponseWriter, r *http.Request) {
		dry := r.URL.Query().Get("dry_run") == "true"
		results, err := s.sweeper.Sweep(r.Context(), dry)
		if err != nil {
			http.Error(w, "the sweep was cut short", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(gcAnswer{DryRun: dry, Results: results}) // who asked is gone, else
	})
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		return fmt.Errorf("serving `stromboli gc`: %w", err)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(last)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// askForGC has the server that uses a data directory sweep.
func askForGC(ctx context.Context, dataDir string, dry bool) ([]retention.Result, error) {
	path, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return unixsock.Dial(ctx, gcSocket(path))
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://stromboli/gc?dry_run=%t", dry), nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("another process uses the data directory %s, and no server there can be told to sweep: %w", dataDir, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server that uses the data directory %s answers: %s", dataDir, res.Status)
	}
	var answer gcAnswer
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w", err)
	}
	return answer.Results, nil
}
