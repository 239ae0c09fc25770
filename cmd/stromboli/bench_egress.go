package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/podman"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// egress measures a source on this machine from inside a sandbox, through shim
// and egress, and from the host directly, in turn.
func (c benchCommand) egress(ctx context.Context, rig *benchRig, engine *podman.Client, p process) ([]figure, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	source := &http.Server{Handler: probeSource(), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = source.Serve(ln) }() // ends by Close
	defer func() { _ = source.Close() }()
	addr := ln.Addr().String()

	tools := filepath.Join(rig.dir, "tools")
	if err := copySelf(tools); err != nil {
		return nil, err
	}
	server, err := startBenchServer(ctx, rig, engine, p, "egress", "STROMBOLI_EGRESS_ALLOW="+addr, "STROMBOLI_AGENT_ALLOWED_VOLUMES="+tools)
	if err != nil {
		return nil, err
	}
	defer server.stop(context.WithoutCancel(ctx))

	var directMS, egressMS, directPaced, egressPaced, directStream, egressStream []float64
	for round := range c.Probes {
		out := filepath.Join(rig.dir, "direct"+strconv.Itoa(round)+".json")
		direct, err := benchProbeCommand{URL: "http://" + addr, Requests: probeRequests, Out: out}.measure(ctx)
		if err != nil {
			return nil, fmt.Errorf("direct, round %d: %w", round, err)
		}
		through, err := server.probe(ctx, tools, addr)
		if err != nil {
			return nil, fmt.Errorf("through egress, round %d: %w", round, err)
		}
		directMS, egressMS = append(directMS, direct.RequestsMS...), append(egressMS, through.RequestsMS...)
		directPaced, egressPaced = append(directPaced, direct.PacedMBs), append(egressPaced, through.PacedMBs)
		directStream, egressStream = append(directStream, direct.UnpacedMBs), append(egressStream, through.UnpacedMBs)
		_, _ = fmt.Fprintf(rig.show, "\rbench: egress, round %d of %d", round+1, c.Probes)
	}
	_, _ = fmt.Fprintln(rig.show)
	memory, err := server.doors(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("memory of %d sandboxes' proxies: %w", benchDoors, err)
	}
	figures := []figure{
		summary("direct_request", "ms", directMS), summary("egress_request", "ms", egressMS),
		summary("direct_stream_paced", "MB/s", directPaced), summary("egress_stream_paced", "MB/s", egressPaced),
		summary("direct_stream", "MB/s", directStream), summary("egress_stream", "MB/s", egressStream),
		summary("egress_memory_100", "MiB", []float64{memory}),
	}
	for _, kind := range []string{"request", "stream_paced", "stream"} {
		compare(figures, "egress_"+kind, "direct_"+kind)
	}
	return figures, nil
}

const probeRequests = 400

// copySelf puts this program where a sandbox can have it mounted.
func copySelf(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the agent must get in
		return err
	}
	out, err := os.OpenFile(filepath.Join(dir, "stromboli"), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755) //nolint:gosec // the agent runs it
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return closing(out, err)
	}
	return out.Close()
}

// probe measures from inside a sandbox.
func (s *benchServer) probe(ctx context.Context, tools, addr string) (probeResult, error) {
	var r probeResult
	input, err := json.Marshal(map[string]string{
		"command": fmt.Sprintf("/bench/stromboli bench-probe --url http://%s --proxy 127.0.0.1:3128 --requests %d --out /workspace/probe.json", addr, probeRequests),
	})
	if err != nil {
		return r, err
	}
	script, err := json.Marshal(modelstub.Script{Steps: []modelstub.Step{
		{ToolUse: &modelstub.ToolUse{Name: "Bash", Input: input}}, {Text: "measured"},
	}})
	if err != nil {
		return r, err
	}
	spec := stromboli.RunSpec{
		Prompt: "stub: " + string(script),
		Claude: stromboli.ClaudeOptions{DangerouslySkipPermissions: true},
		Podman: stromboli.PodmanOptions{Volumes: []string{tools + ":/bench:ro"}, CPUs: "2", Memory: "1g"},
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return r, err
	}
	b, err := s.do(ctx, http.MethodPost, "/run", body)
	if err != nil {
		return r, err
	}
	var answer struct {
		SessionID string `json:"session_id"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return r, err
	}
	b, err = os.ReadFile(filepath.Join(s.data, "sessions", answer.SessionID, "workspace", "probe.json"))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}
