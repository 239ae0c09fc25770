package sandbox

import (
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// A volume's options hold in it, and in what the host has mounted below its
// source.
func TestVolumeOptionsAreJudged(t *testing.T) {
	fact := func(target string, ro bool, options ...string) shim.MountFact {
		return shim.MountFact{Target: target, RO: ro, Options: append(options, "nosuid", "nodev")}
	}
	volume := func(ro, noExec bool) engine.Mount { return engine.Mount{Target: "/v", ReadOnly: ro, NoExec: noExec} }
	for name, c := range map[string]struct {
		want   engine.Mount
		facts  []shim.MountFact
		misses string
	}{
		"as asked":             {volume(true, true), []shim.MountFact{fact("/v", true, "noexec")}, ""},
		"more than asked":      {volume(false, false), []shim.MountFact{fact("/v", true, "noexec")}, ""},
		"writable":             {volume(true, false), []shim.MountFact{fact("/v", false)}, "/v can be written"},
		"executable":           {volume(false, true), []shim.MountFact{fact("/v", false)}, "/v can be executed"},
		"setuid":               {volume(false, false), []shim.MountFact{{Target: "/v", Options: []string{"nodev"}}}, "setuid"},
		"missing":              {volume(false, false), nil, "nothing is mounted"},
		"below, writable":      {volume(true, false), []shim.MountFact{fact("/v", true), fact("/v/sub", false)}, "/v/sub, a mount"},
		"below, executable":    {volume(false, true), []shim.MountFact{fact("/v", false, "noexec"), fact("/v/sub", false)}, "/v/sub, a mount"},
		"below, as asked":      {volume(true, true), []shim.MountFact{fact("/v", true, "noexec"), fact("/v/sub", true, "noexec")}, ""},
		"below, not asked":     {volume(false, false), []shim.MountFact{fact("/v", false), fact("/v/sub", false)}, ""},
		"beside":               {volume(true, false), []shim.MountFact{fact("/v", true), fact("/volume", false)}, ""},
		"an outer one's inner": {volume(true, false), []shim.MountFact{fact("/v", true), fact("/v/inner", false)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := judgement{spec: engine.ContainerSpec{Mounts: []engine.Mount{c.want}}, a: &stromboli.Attestation{}}
			if name == "an outer one's inner" { // a volume of the run's own
				j.spec.Mounts = append(j.spec.Mounts, engine.Mount{Target: "/v/inner"})
			}
			j.facts.Mounts = c.facts
			for _, path := range maskedPaths() {
				j.facts.Mounts = append(j.facts.Mounts, fact(path, true))
			}
			j.files()
			got := strings.Join(j.missing, "; ")
			if (got == "") != (c.misses == "") || !strings.Contains(got, c.misses) {
				t.Errorf("judged: %q, want %q", got, c.misses)
			}
		})
	}
}

// Both conversions to cgroup v2's weights are right, and nothing else is.
func TestCPUSharesAreJudged(t *testing.T) {
	for _, c := range []struct {
		asked, shares, weight int64
		ok                    bool
	}{
		{0, 1024, -1, true},
		{512, 512, -1, true},
		{512, 1024, -1, false},
		{512, -1, -1, false},
		{0, -1, 100, true},
		{2, -1, 1, true},
		{1024, -1, 39, true},
		{1024, -1, 100, true},
		{512, -1, 20, true},
		{512, -1, 59, true},
		{512, -1, 100, false},
		{262144, -1, 10000, true},
		{262144, -1, 100, false},
	} {
		j := judgement{spec: engine.ContainerSpec{CPUShares: c.asked}, a: &stromboli.Attestation{Limits: map[string]stromboli.AttestedLimit{}}}
		what, ok := j.cpuShares(shim.CgroupLimits{CPUShares: c.shares, CPUWeight: c.weight})
		if ok != c.ok {
			t.Errorf("%+v: %s", c, what)
		}
		name, inForce := "cpu_shares", c.shares
		if c.weight >= 0 {
			name, inForce = "cpu_weight", c.weight
		}
		if l := j.a.Limits[name]; l.InForce != inForce || len(j.a.Limits) != 1 || ok && c.weight >= 0 && c.asked > 0 && l.Asked != inForce {
			t.Errorf("%+v: %v", c, j.a.Limits)
		}
	}
}
