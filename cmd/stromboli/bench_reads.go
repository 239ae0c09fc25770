package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/store"
)

const (
	readsRuns     = 1_000_000
	readsSessions = 100_000
	readsRounds   = 500 // requests one after the other
	loadClients   = 8
	loadTime      = time.Second
	loadRounds    = 5
)

// reads measures a server that knows a million runs: single requests, and how
// many it answers in a second against a handler that does nothing.
func (c benchCommand) reads(ctx context.Context, rig *benchRig, engine *podman.Client, p process) ([]figure, error) {
	data := filepath.Join(rig.dir, "reads")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	_, _ = fmt.Fprintf(rig.show, "bench: writing %d runs and %d sessions\n", readsRuns, readsSessions)
	if err := fillStore(ctx, filepath.Join(data, "stromboli.db")); err != nil {
		return nil, fmt.Errorf("filling a store: %w", err)
	}
	server, err := startBenchServer(ctx, rig, engine, p, "reads")
	if err != nil {
		return nil, err
	}
	defer server.stop(context.WithoutCancel(ctx))

	transport := &http.Transport{MaxIdleConnsPerHost: loadClients}
	defer transport.CloseIdleConnections()
	job := func() string { return fmt.Sprintf("/jobs/run-%025d0", 1+rand.N(readsRuns)) } //nolint:gosec // a sample
	times := map[string][]float64{}
	for range readsRounds {
		for name, path := range map[string]string{
			"get_job": job(), "list_jobs_50": "/jobs?limit=50", "list_sessions_50": "/sessions?limit=50",
		} {
			took, _, err := fetch(ctx, transport, server.url+path)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			times[name] = append(times[name], milliseconds(took))
		}
	}

	rates := map[string][]float64{}
	health, err := server.get(ctx, "/health")
	if err != nil {
		return nil, err
	}
	bare, err := startBare(ctx, string(health))
	if err != nil {
		return nil, err
	}
	defer bare.stop()
	for range loadRounds {
		for name, next := range map[string]func() string{
			"bare_rps":    func() string { return bare.url },
			"health_rps":  func() string { return server.url + "/health" },
			"get_job_rps": func() string { return server.url + job() },
		} {
			rate, err := load(ctx, transport, next)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			rates[name] = append(rates[name], rate)
		}
	}
	var out []figure
	for _, name := range []string{"get_job", "list_jobs_50", "list_sessions_50"} {
		out = append(out, summary(name, "ms", times[name]))
	}
	for _, name := range []string{"bare_rps", "health_rps", "get_job_rps"} {
		out = append(out, summary(name, "1/s", rates[name]))
	}
	compare(out, "health_rps", "bare_rps")
	compare(out, "get_job_rps", "bare_rps")
	return out, nil
}

// fillStore makes a database of many runs and sessions.
func fillStore(ctx context.Context, path string) (err error) {
	st, err := store.Open(ctx, store.Config{Path: path})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }() //nolint:contextcheck // closing is not cut short
	session := func() *stromboli.Session {
		id := uuid.NewString()
		return &stromboli.Session{ID: id, CLISessionID: id, Tenant: stromboli.DefaultTenant, Title: "A session of the benchmark"}
	}
	first := session()
	run, _, err := st.CreateRun(ctx, stromboli.NewRun{
		Run: stromboli.Run{
			ID: stromboli.NewRunID(time.Now()), Tenant: stromboli.DefaultTenant, Kind: stromboli.KindAsync, SessionID: first.ID,
			Status: stromboli.Pending, Phase: stromboli.PhaseQueued, Spec: stromboli.RunSpec{Prompt: "hello"},
		},
		CreateSession: first, MaxQueued: 1,
	})
	if err != nil {
		return err
	}
	if _, err := st.RequestCancel(ctx, stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest}); err != nil {
		return err
	}
	if err := st.Multiply(ctx, run.ID, readsRuns); err != nil {
		return err
	}
	var writers sync.WaitGroup
	failed := make(chan error, loadClients)
	for range loadClients { // they share commits
		writers.Go(func() {
			for range readsSessions / loadClients {
				if err := st.CreateSession(ctx, *session()); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	writers.Wait()
	close(failed)
	return <-failed
}

// load counts the answers that some clients get in a second.
func load(ctx context.Context, t http.RoundTripper, next func() string) (float64, error) {
	end := time.Now().Add(loadTime)
	counts := make(chan int, loadClients)
	failed := make(chan error, loadClients)
	var clients sync.WaitGroup
	for range loadClients {
		clients.Go(func() {
			n := 0
			for time.Now().Before(end) {
				if _, _, err := fetch(ctx, t, next()); err != nil {
					failed <- err
					return
				}
				n++
			}
			counts <- n
		})
	}
	clients.Wait()
	close(counts)
	close(failed)
	total := 0
	for n := range counts {
		total += n
	}
	return float64(total) / loadTime.Seconds(), <-failed
}

// benchBareCommand answers every request with one text: what net/http itself
// costs, in a process of its own as the server is.
type benchBareCommand struct {
	Body string `required:""`
}

// Run prints its address and serves until it is told to stop.
func (c benchBareCommand) Run(ctx context.Context, p process) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, c.Body)
	})}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	_, _ = fmt.Fprintln(p.stdout, ln.Addr())
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// bare is a running benchBareCommand.
type bare struct {
	url string
	cmd *exec.Cmd
}

func startBare(ctx context.Context, body string) (bare, error) {
	self, err := os.Executable()
	if err != nil {
		return bare{}, err
	}
	cmd := exec.CommandContext(ctx, self, "bench-bare", "--body", body)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return bare{}, err
	}
	if err := cmd.Start(); err != nil {
		return bare{}, err
	}
	b := bare{cmd: cmd}
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		b.stop()
		return bare{}, fmt.Errorf("the bare handler's address: %w", err)
	}
	b.url = "http://" + strings.TrimSpace(string(line[:n]))
	return b, nil
}

func (b bare) stop() {
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	_ = b.cmd.Wait()
}
