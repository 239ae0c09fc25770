package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// A kept sandbox serves runs that ask for the same, whatever its record went
// through.
func TestDiffers(t *testing.T) {
	t.Parallel()
	base := func() engine.ContainerSpec {
		return engine.ContainerSpec{
			Name: "n", Image: "sha256:1", Command: []string{shimPath}, CapAdd: shimCapabilities(), MemoryBytes: 1 << 30, NanoCPUs: 1e9,
			Mounts: []engine.Mount{
				{Source: "/data/shims/1", Target: shimPath, ReadOnly: true}, {Source: "/data/home", Target: HomePath}, {Source: "/src", Target: "/src"},
			},
			Tmpfs: []engine.Tmpfs{{Target: runPath, Bytes: tmpfsBytes, Mode: 0o700}},
		}
	}
	for want, change := range map[string]func(*engine.ContainerSpec){
		"":                                  func(*engine.ContainerSpec) {},
		"another image":                     func(s *engine.ContainerSpec) { s.Image = "sha256:2" },
		"other limits":                      func(s *engine.ContainerSpec) { s.NanoCPUs = 2e9 },
		"another kind of network":           func(s *engine.ContainerSpec) { s.Network = engine.NetworkBridge },
		"other volumes, or another workdir": func(s *engine.ContainerSpec) { s.Mounts[2].ReadOnly = true },
		"other secrets of the engine's": func(s *engine.ContainerSpec) {
			s.Secrets = []engine.SecretMount{{Secret: "id", Target: "/run/stromboli/secrets/0"}}
		},
		"another version of the server or the agent CLI": func(s *engine.ContainerSpec) { s.Mounts[0].Source = "/data/shims/2" },
		"another configuration of the server":            func(s *engine.ContainerSpec) { s.CapAdd = rootCapabilities(true) },
	} {
		b, err := json.Marshal(base())
		must(t, err)
		var old engine.ContainerSpec
		must(t, json.Unmarshal(b, &old))
		now := base()
		change(&now)
		if got, err := differs(old, now); got != want || err != nil {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	more := base()
	more.Mounts = append(more.Mounts, engine.Mount{Source: "/v", Target: "/v"})
	if got, _ := differs(base(), more); got != "other volumes, or another workdir" {
		t.Errorf("one volume more: %q", got)
	}
}

func TestHolds(t *testing.T) {
	t.Parallel()
	var h holds
	var work sync.WaitGroup
	inside := 0 // the race detector sees two at once
	for range 20 {
		work.Go(func() {
			free, err := h.take(t.Context(), "one")
			if err != nil {
				t.Error(err)
				return
			}
			inside++
			free()
		})
	}
	work.Wait()
	free, err := h.take(t.Context(), "one")
	must(t, err)
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.take(short, "one"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held: %v", err)
	}
	other, err := h.take(t.Context(), "other")
	must(t, err)
	other()
	free()
	if inside != 20 || len(h.held) != 0 {
		t.Errorf("%d were inside, %d are held", inside, len(h.held))
	}
}
