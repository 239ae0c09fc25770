package podman

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Ping implements engine.Engine.
func (c *Client) Ping(ctx context.Context) error { return c.answers(ctx, 10*time.Second) }

func (c *Client) answers(ctx context.Context, limit time.Duration) error {
	err := c.call(ctx, request{op: "ping the container engine", method: http.MethodGet, path: "/_ping", limit: limit}, nil)
	return err
}

// infoAnswer is libpod's answer, as far as it is used.
type infoAnswer struct {
	Host struct {
		Arch              string   `json:"arch"`
		OS                string   `json:"os"`
		Kernel            string   `json:"kernel"`
		CgroupManager     string   `json:"cgroupManager"`
		CgroupVersion     string   `json:"cgroupVersion"`
		CgroupControllers []string `json:"cgroupControllers"`
		OCIRuntime        struct {
			Name string `json:"name"`
		} `json:"ociRuntime"`
		Security struct {
			Rootless bool `json:"rootless"`
			SELinux  bool `json:"selinuxEnabled"`
			AppArmor bool `json:"apparmorEnabled"`
			Seccomp  bool `json:"seccompEnabled"`
		} `json:"security"`
	} `json:"host"`
	Store struct {
		GraphDriverName string         `json:"graphDriverName"`
		GraphRoot       string         `json:"graphRoot"`
		GraphOptions    map[string]any `json:"graphOptions"`
	} `json:"store"`
	Version struct {
		Version    string
		APIVersion string
	} `json:"version"`
}

// infoFresh is for how long an Info is good: asking costs Podman half a second.
const infoFresh = time.Minute

// Info implements engine.Engine. Its answer may be up to a minute old.
func (c *Client) Info(ctx context.Context) (engine.Info, error) {
	c.infoMu.Lock()
	info, at := c.info, c.infoAt
	c.infoMu.Unlock()
	if !at.IsZero() && time.Since(at) < infoFresh {
		info.Notes = slices.Clone(info.Notes)
		return info, nil
	}
	info, err := c.askInfo(ctx)
	if err != nil {
		return engine.Info{}, err
	}
	c.infoMu.Lock()
	c.info, c.infoAt = info, time.Now()
	c.infoMu.Unlock()
	return info, nil
}

func (c *Client) askInfo(ctx context.Context) (engine.Info, error) {
	var a infoAnswer
	// Only the other API says whether the kernel accounts swap. Each question
	// takes Podman a good part of a second, and a starting server waits for both.
	var compat struct {
		SwapLimit bool
	}
	var compatErr error
	var both sync.WaitGroup
	both.Go(func() {
		compatErr = c.call(ctx, request{op: "ask the container engine about swap", method: http.MethodGet, path: compatInfo, limit: queryLimit}, &compat)
	})
	err := c.call(ctx, request{op: "ask the container engine about itself", method: http.MethodGet, path: "/info", limit: queryLimit}, &a)
	both.Wait()
	if err := cmp.Or(err, compatErr); err != nil {
		return engine.Info{}, err
	}
	info := engine.Info{
		Name: "podman", Version: a.Version.Version, APIVersion: a.Version.APIVersion,
		OS: a.Host.OS, Architecture: a.Host.Arch, Kernel: a.Host.Kernel, Rootless: a.Host.Security.Rootless,
		CgroupVersion: 1, CgroupManager: a.Host.CgroupManager, Controllers: a.Host.CgroupControllers,
		GraphDriver: a.Store.GraphDriverName, GraphRoot: a.Store.GraphRoot, OCIRuntime: a.Host.OCIRuntime.Name,
		SELinux: a.Host.Security.SELinux, AppArmor: a.Host.Security.AppArmor, Seccomp: a.Host.Security.Seccomp,
		LimitsSwap: compat.SwapLimit,
	}
	if a.Host.CgroupVersion == "v2" {
		info.CgroupVersion = 2
	}
	_, fuse := a.Store.GraphOptions["overlay.mount_program"]
	info.MapsImages = info.GraphDriver == "overlay" && !fuse && mapsLayers(info.Kernel)
	info.EnforcesLimits = enforces(info)
	info.Notes = append(notesOn(info), c.notes...)
	return info, nil
}

// mapsLayers reports whether a kernel takes id-mapped layers for an overlay:
// 5.19 was the first. One that can't be read is old.
func mapsLayers(release string) bool {
	var major, minor int
	n, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return n == 2 && err == nil && (major > 5 || major == 5 && minor >= 19)
}

// enforces reports whether container limits have an effect.
func enforces(info engine.Info) bool {
	if info.Rootless && info.CgroupVersion == 1 {
		return false
	}
	return len(missingControllers(info)) == 0
}

func missingControllers(info engine.Info) []string {
	var missing []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(info.Controllers, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

func notesOn(info engine.Info) []string {
	var notes []string
	missing := missingControllers(info)
	switch {
	case info.Rootless && info.CgroupVersion == 1:
		notes = append(notes, "rootless on cgroup v1 enforces no memory, cpu or pids limit; use cgroup v2 or a rootful engine")
	case len(missing) > 0 && info.Rootless:
		notes = append(notes, "no limits for "+strings.Join(missing, ", ")+
			": delegate the controllers to the user (Delegate=cpu memory pids in user@.service)")
	case len(missing) > 0:
		notes = append(notes, "this machine has no cgroup controllers for "+strings.Join(missing, ", "))
	}
	if !info.LimitsSwap && info.EnforcesLimits {
		notes = append(notes, "the kernel doesn't account swap: a sandbox may use swap beyond its memory (boot with swapaccount=1, or switch swap off)")
	}
	if info.GraphDriver != "overlay" {
		notes = append(notes, "the storage driver "+info.GraphDriver+" copies whole images for each container; overlay doesn't")
	}
	if !info.Seccomp {
		notes = append(notes, "the engine has no seccomp support")
	}
	if info.OS != "" && info.OS != runtime.GOOS {
		notes = append(notes, "the engine runs on another system ("+info.OS+")")
	}
	return notes
}
