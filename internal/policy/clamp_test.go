package policy

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func TestClamp(t *testing.T) {
	most := testConfig()
	most.MaxMemory, most.MaxNanoCPUs, most.MaxCPUShares, most.MaxTimeout = 3<<29, 15e8, 2048, time.Hour
	type pod = stromboli.PodmanOptions
	long := stromboli.Duration(2 * time.Hour)
	for _, c := range []struct {
		spec stromboli.RunSpec
		want Plan // its limits
		says []string
	}{
		{stromboli.RunSpec{}, Plan{MemoryBytes: 512 << 20, NanoCPUs: 1e9, SandboxTimeout: 30 * time.Minute}, nil},
		{
			stromboli.RunSpec{Podman: pod{Memory: "1.5g", CPUs: "1.5", CPUShares: ptr(2048), Timeout: stromboli.Duration(time.Hour)}},
			Plan{MemoryBytes: 3 << 29, NanoCPUs: 15e8, CPUShares: 2048, SandboxTimeout: time.Hour},
			nil,
		},
		{
			stromboli.RunSpec{Podman: pod{Memory: "2g", CPUs: "2", CPUShares: ptr(2049), Timeout: long}},
			Plan{MemoryBytes: 3 << 29, NanoCPUs: 15e8, CPUShares: 2048, SandboxTimeout: time.Hour},
			[]string{
				"podman.memory: 2g was asked for; the run gets 1536m, the most that this server gives (STROMBOLI_RESOURCES_MAX_MEMORY)",
				"podman.cpus: 2 was asked for; the run gets 1.5, the most that this server gives (STROMBOLI_RESOURCES_MAX_CPUS)",
				"podman.cpu_shares: 2049 was asked for; the run gets 2048, the most that this server gives (STROMBOLI_RESOURCES_MAX_CPU_SHARES)",
				"podman.timeout: 2h0m0s was asked for; the run gets 1h0m0s, the most that this server gives (STROMBOLI_RESOURCES_MAX_TIMEOUT)",
			},
		},
		{
			stromboli.RunSpec{Claude: stromboli.ClaudeOptions{Timeout: long}},
			Plan{MemoryBytes: 512 << 20, NanoCPUs: 1e9, ClaudeTimeout: time.Hour, SandboxTimeout: time.Hour},
			[]string{"claude.timeout: 2h0m0s was asked for; the run gets 1h0m0s, the most that this server gives (STROMBOLI_RESOURCES_MAX_TIMEOUT)"},
		},
		{ // nothing beyond the maximum was asked for
			stromboli.RunSpec{Claude: stromboli.ClaudeOptions{Timeout: stromboli.Duration(time.Hour)}},
			Plan{MemoryBytes: 512 << 20, NanoCPUs: 1e9, ClaudeTimeout: time.Hour, SandboxTimeout: time.Hour},
			nil,
		},
	} {
		c.spec.Prompt = "x"
		p, err := Check(c.spec, most)
		if err != nil {
			t.Fatal(err)
		}
		got := Plan{MemoryBytes: p.MemoryBytes, NanoCPUs: p.NanoCPUs, CPUShares: p.CPUShares, ClaudeTimeout: p.ClaudeTimeout, SandboxTimeout: p.SandboxTimeout}
		same := got.MemoryBytes == c.want.MemoryBytes && got.NanoCPUs == c.want.NanoCPUs && got.CPUShares == c.want.CPUShares &&
			got.ClaudeTimeout == c.want.ClaudeTimeout && got.SandboxTimeout == c.want.SandboxTimeout
		if !same || len(p.Warnings) != len(c.says) {
			t.Errorf("%+v: %+v, %v", c.spec, got, p.Warnings)
			continue
		}
		for i, w := range p.Warnings {
			if w.Code != WarningClamped || w.Message != c.says[i] {
				t.Errorf("%s: %q, want %q", w.Code, w.Message, c.says[i])
			}
		}
	}
}

// A run that doesn't ask gets no larger share than one that does.
func TestClampDefaultShares(t *testing.T) {
	for most, want := range map[int64]int64{0: 0, 512: 512, 4096: 0} {
		c := testConfig()
		c.MaxCPUShares = most
		p, err := Check(stromboli.RunSpec{Prompt: "x"}, c)
		if err != nil || p.CPUShares != want || len(p.Warnings) != 0 {
			t.Errorf("%d: %d, %v, %v", most, p.CPUShares, p.Warnings, err)
		}
	}
}
