package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
)

// bare is the CLI on the host.
func (r *benchRig) bare(ctx context.Context, round int) (map[string]time.Duration, error) {
	home, err := r.fresh("bare", round)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.cli, "claude"), cliArgs()...)
	cmd.Dir = home
	cmd.Env = []string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "ANTHROPIC_API_KEY=placeholder", "ANTHROPIC_BASE_URL=" + r.model,
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "DISABLE_AUTOUPDATER=1",
	}
	took, err := timed(cmd)
	return map[string]time.Duration{"claude_bare": took}, err
}

func cliArgs() []string { return []string{"-p", benchPrompt, "--output-format", "json"} }

// podmanRun is the same CLI in a container with the same hardening as a
// sandbox, but with the host's network.
func (r *benchRig) podmanRun(ctx context.Context, round int) (map[string]time.Duration, error) {
	dir, err := r.fresh("podman", round)
	if err != nil {
		return nil, err
	}
	args := append(r.podman[1:len(r.podman):len(r.podman)],
		"run", "--rm", "--network", "host", "--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges",
		"--pids-limit", "1024", "--memory", "512m", "--memory-swap", "512m", "--cpus", "1", "--user", "1000:1000", "--workdir", "/workspace",
		"--env", "HOME=/home/agent", "--env", "ANTHROPIC_API_KEY=placeholder", "--env", "ANTHROPIC_BASE_URL="+r.model,
		"--env", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "--env", "DISABLE_AUTOUPDATER=1",
		"--volume", r.cli+":/opt/stromboli/cli:ro")
	for name, target := range map[string]string{"home": "/home/agent", "workspace": "/workspace", "tmp": "/tmp"} {
		sub := filepath.Join(dir, name)
		if err := os.Mkdir(sub, 0o700); err != nil {
			return nil, err
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(sub, 1000, 1000); err != nil {
				return nil, err
			}
		}
		args = append(args, "--volume", sub+":"+target)
	}
	if os.Geteuid() != 0 {
		args = append(args, "--userns", "keep-id:uid=1000,gid=1000")
	}
	args = append(args, r.image, "/opt/stromboli/cli/claude")
	cmd := exec.CommandContext(ctx, r.podman[0], append(args, cliArgs()...)...)
	cmd.Env = r.env
	took, err := timed(cmd)
	return map[string]time.Duration{"podman_run": took}, err
}

// runCold is POST /run, and what its events tell of the time in between.
func (r *benchRig) runCold(ctx context.Context, _ int) (map[string]time.Duration, error) {
	start := time.Now()
	id, err := r.server.run(ctx, "/run", benchSpec())
	took := time.Since(start)
	if err != nil {
		return nil, err
	}
	parts, err := r.server.timing(ctx, id)
	if err != nil {
		return nil, err
	}
	server := time.Duration(parts.TotalUS-parts.EngineUS) * time.Microsecond
	engine := time.Duration(parts.EngineUS) * time.Microsecond
	return map[string]time.Duration{
		"run_cold": took, "submit_to_start": server, "run_cold_engine": engine, "run_cold_cli": took - server - engine,
	}, nil
}

func (r *benchRig) fresh(name string, round int) (string, error) {
	dir := filepath.Join(r.dir, name+strconv.Itoa(round))
	return dir, os.Mkdir(dir, 0o755) //nolint:gosec // the container's user must get in
}

// timed runs cmd, whose output must hold the model's answer.
func timed(cmd *exec.Cmd) (time.Duration, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err == nil && !strings.Contains(out.String(), "pong") {
		err = fmt.Errorf("no answer")
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %s%s", err, out.String(), errs.String())
	}
	return took, nil
}

// benchServer is `stromboli serve` as a process of its own.
type benchServer struct {
	cmd  *exec.Cmd
	url  string
	data string
}

// startBenchServer runs a server with a data directory of that name.
func startBenchServer(ctx context.Context, rig *benchRig, engine *podman.Client, p process, name string, environ ...string) (*benchServer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &benchServer{data: filepath.Join(rig.dir, name)}
	s.cmd = exec.CommandContext(ctx, self, "serve")
	s.cmd.Env = append(p.environ[:len(p.environ):len(p.environ)],
		"STROMBOLI_DATA_DIR="+s.data, "STROMBOLI_SERVER_ADDRESS=127.0.0.1:0", "CONTAINER_HOST=unix://"+engine.Socket(),
		"ANTHROPIC_API_KEY=bench", "ANTHROPIC_BASE_URL="+rig.model, "STROMBOLI_LOG_LEVEL=warn",
		"STROMBOLI_AUTH_ENABLED=false", "STROMBOLI_RATE_LIMIT_ENABLED=false")
	s.cmd.Env = append(s.cmd.Env, environ...)
	s.cmd.Stderr = p.stderr
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	err = poll(ctx, 20*time.Second, func() (bool, error) {
		if s.url = readAddress(s.data); s.url == "" {
			return false, nil
		}
		_, err := s.get(ctx, "/readyz") // egress included
		return err == nil, nil
	})
	if err != nil {
		s.stop(ctx)
		return nil, fmt.Errorf("waiting for the server to be measured: %w", err)
	}
	return s, nil
}

// poll asks every 20 ms until the answer is yes, or for so long.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ask(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (s *benchServer) stop(ctx context.Context) {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait()
	if pid, err := egressPID(ctx, s.data); err == nil { // nobody needs it any more
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
}

func (s *benchServer) get(ctx context.Context, path string) ([]byte, error) {
	return s.do(ctx, http.MethodGet, path, nil)
}

func (s *benchServer) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := (&http.Client{Timeout: 5 * time.Minute}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return b, err
}

// run submits a spec and returns the run's id.
func (s *benchServer) run(ctx context.Context, path string, spec stromboli.RunSpec) (string, error) {
	body, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	b, err := s.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return "", err
	}
	var answer struct {
		ID    string `json:"id"`
		JobID string `json:"job_id"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return "", err
	}
	return answer.ID + answer.JobID, nil
}

// timing reads what the run's start took.
func (s *benchServer) timing(ctx context.Context, id string) (stromboli.StartTiming, error) {
	b, err := s.get(ctx, "/jobs/"+id+"/events")
	if err != nil {
		return stromboli.StartTiming{}, err
	}
	var page struct {
		Events []stromboli.Event `json:"events"`
	}
	if err := json.Unmarshal(b, &page); err != nil {
		return stromboli.StartTiming{}, err
	}
	for _, e := range page.Events {
		var d stromboli.PhaseData
		if e.Type == stromboli.EventPhase && json.Unmarshal(e.Data, &d) == nil && d.Timing != nil {
			return *d.Timing, nil
		}
	}
	return stromboli.StartTiming{}, fmt.Errorf("run %s doesn't tell what its start took", id)
}

// memory is the proportional set size of server and egress in MiB.
func (s *benchServer) memory(ctx context.Context) (float64, error) {
	pid, err := egressPID(ctx, s.data)
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, p := range []int{s.cmd.Process.Pid, pid} {
		mib, err := pss(p)
		if err != nil {
			return 0, err
		}
		sum += mib
	}
	return sum, nil
}

// memoryPerRun is what each of n runs that stream at once adds.
func (s *benchServer) memoryPerRun(ctx context.Context, n int, idle float64) (float64, error) {
	spec := stromboli.RunSpec{Prompt: `stub: {"steps":[{"bytes":4000,"chunk":20,"pace_ms":200}]}`}
	spec.Claude.IncludePartialMessages = true
	ids := make([]string, 0, n)
	for range n {
		id, err := s.run(ctx, "/run/async", spec)
		if err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		err := poll(ctx, time.Minute, func() (bool, error) {
			b, err := s.get(ctx, "/jobs/"+id+"/events?after=20&limit=1")
			return bytes.Contains(b, []byte(`"seq"`)), err
		})
		if err != nil {
			return 0, fmt.Errorf("waiting for run %s to stream: %w", id, err)
		}
	}
	busy, err := s.memory(ctx)
	for _, id := range ids {
		_, derr := s.do(ctx, http.MethodDelete, "/jobs/"+id, nil)
		if err == nil {
			err = derr
		}
	}
	if err != nil {
		return 0, err
	}
	return (busy - idle) / float64(n), s.empty(ctx)
}

func pss(pid int) (float64, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d doesn't tell its memory", pid)
}
