package podman

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// inspectAnswer is libpod's answer, as far as it is used.
type inspectAnswer struct {
	ID          string `json:"Id"`
	Name        string
	Created     time.Time
	Image       string
	ImageDigest string
	ImageName   string
	OCIRuntime  string

	EffectiveCaps []string
	BoundingCaps  []string

	GraphDriver struct {
		Data struct{ UpperDir string }
	}
	State struct {
		Status     string
		OOMKilled  bool
		Pid        int
		ExitCode   int
		Error      string
		StartedAt  time.Time
		FinishedAt time.Time
	}
	Config struct {
		Labels map[string]string
		User   string
	}
	Mounts []struct {
		Type, Source, Destination string
		Options                   []string
		RW                        bool
	}
	HostConfig struct {
		Memory, MemorySwap, NanoCpus, CPUShares, PidsLimit int64
		CPUQuota, CPUPeriod                                int64
		ReadonlyRootfs, Privileged                         bool
		NetworkMode, UsernsMode                            string
		SecurityOpt                                        []string
		IDMappings                                         struct{ UIDMap, GIDMap []string }
	}
}

// Inspect implements engine.Containers.
func (c *Client) Inspect(ctx context.Context, id string) (engine.Container, error) {
	var a inspectAnswer
	err := c.call(ctx, request{
		op: "inspect container " + id, method: http.MethodGet, path: containerPath(id, "/json"), limit: queryLimit,
	}, &a)
	if err != nil {
		return engine.Container{}, err
	}
	out := engine.Container{
		ID: a.ID, Name: a.Name, Image: a.ImageName, ImageID: a.Image, ImageDigest: a.ImageDigest,
		Labels: a.Config.Labels, Created: a.Created, State: stateOf(a.State.Status), PID: a.State.Pid,
		ExitCode: a.State.ExitCode, OOMKilled: a.State.OOMKilled, Error: a.State.Error,
		StartedAt: knownTime(a.State.StartedAt), FinishedAt: knownTime(a.State.FinishedAt),
	}
	out.InForce = engine.InForce{
		MemoryBytes: a.HostConfig.Memory, MemorySwapBytes: a.HostConfig.MemorySwap, NanoCPUs: a.HostConfig.NanoCpus,
		CPUShares: a.HostConfig.CPUShares, PidsLimit: a.HostConfig.PidsLimit,
		ReadOnlyRoot: a.HostConfig.ReadonlyRootfs, Privileged: a.HostConfig.Privileged,
		Capabilities: a.EffectiveCaps, BoundingSet: a.BoundingCaps, Network: a.HostConfig.NetworkMode,
		User: a.Config.User, UserNS: a.HostConfig.UsernsMode, OCIRuntime: a.OCIRuntime, SeccompProfile: "default",
		NoNewPrivileges: slices.Contains(a.HostConfig.SecurityOpt, "no-new-privileges"),
	}
	out.InForce.UpperDir = a.GraphDriver.Data.UpperDir
	out.InForce.UIDs, out.InForce.GIDs = idRanges(a.HostConfig.IDMappings.UIDMap), idRanges(a.HostConfig.IDMappings.GIDMap)
	for _, opt := range a.HostConfig.SecurityOpt {
		if profile, ok := strings.CutPrefix(opt, "seccomp="); ok {
			out.InForce.SeccompProfile = profile
		}
	}
	for _, m := range a.Mounts {
		if m.Type == "bind" {
			out.InForce.Mounts = append(out.InForce.Mounts, engine.Mount{
				Source: m.Source, Target: m.Destination, ReadOnly: !m.RW, NoExec: slices.Contains(m.Options, "noexec"),
			})
		}
	}
	return out, nil
}

// idRanges reads a map as inspect writes it: container:host:size.
func idRanges(texts []string) []engine.IDRange {
	var out []engine.IDRange
	for _, text := range texts {
		var r engine.IDRange
		if n, err := fmt.Sscanf(text, "%d:%d:%d", &r.Container, &r.Host, &r.Size); n == 3 && err == nil {
			out = append(out, r)
		}
	}
	return out
}

// List implements engine.Containers.
func (c *Client) List(ctx context.Context, labels map[string]string) ([]engine.Container, error) {
	var answer []struct {
		ID        string `json:"Id"`
		Names     []string
		Image     string
		ImageID   string
		State     string
		Pid       int
		ExitCode  int
		Labels    map[string]string
		Created   time.Time
		StartedAt int64
		ExitedAt  int64
	}
	err := c.call(ctx, request{
		op: "list containers", method: http.MethodGet, path: "/containers/json",
		query: url.Values{"all": {"true"}, "filters": {labelFilter(labels)}}, limit: queryLimit,
	}, &answer)
	if err != nil {
		return nil, err
	}
	list := make([]engine.Container, 0, len(answer))
	for _, a := range answer {
		item := engine.Container{
			ID: a.ID, Image: a.Image, ImageID: a.ImageID, State: stateOf(a.State), PID: a.Pid,
			ExitCode: a.ExitCode, Labels: a.Labels, Created: a.Created,
			StartedAt: unixTime(a.StartedAt), FinishedAt: unixTime(a.ExitedAt),
		}
		if len(a.Names) > 0 {
			item.Name = a.Names[0]
		}
		list = append(list, item)
	}
	return list, nil
}

// stateOf maps libpod's states.
func stateOf(status string) engine.State {
	switch status {
	case "created", "configured", "initialized":
		return engine.StateCreated
	case "running", "stopping":
		return engine.StateRunning
	case "paused":
		return engine.StatePaused
	case "stopped", "exited", "removing", "dead":
		return engine.StateExited
	}
	return engine.StateUnknown
}

// knownTime turns libpod's year 1 into the zero time in UTC.
func knownTime(t time.Time) time.Time {
	if t.Year() <= 1 {
		return time.Time{}
	}
	return t
}

func unixTime(s int64) time.Time {
	if s <= 0 {
		return time.Time{}
	}
	return time.Unix(s, 0)
}
