package policy

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli"
)

// WarningClamped is the code of a warning about a limit that a run asked for
// and got less of.
const WarningClamped = "limit_clamped"

// defaultCPUShares is what the kernel gives where nobody asks.
const defaultCPUShares = 1024

// clamp brings the limits below the operator's maximum, and says so where the
// request asked for more.
func (p *Plan) clamp(spec stromboli.RunSpec, c Config) {
	if c.MaxMemory > 0 && p.MemoryBytes > c.MaxMemory {
		p.clamped("podman.memory", spec.Podman.Memory, size(c.MaxMemory), "STROMBOLI_RESOURCES_MAX_MEMORY")
		p.MemoryBytes = c.MaxMemory
	}
	if c.MaxNanoCPUs > 0 && p.NanoCPUs > c.MaxNanoCPUs {
		p.clamped("podman.cpus", spec.Podman.CPUs, strconv.FormatFloat(float64(c.MaxNanoCPUs)/1e9, 'f', -1, 64), "STROMBOLI_RESOURCES_MAX_CPUS")
		p.NanoCPUs = c.MaxNanoCPUs
	}
	if c.MaxCPUShares > 0 {
		if p.CPUShares > c.MaxCPUShares {
			p.clamped("podman.cpu_shares", strconv.FormatInt(p.CPUShares, 10), strconv.FormatInt(c.MaxCPUShares, 10), "STROMBOLI_RESOURCES_MAX_CPU_SHARES")
		}
		if asked := p.CPUShares; asked > c.MaxCPUShares || asked == 0 && defaultCPUShares > c.MaxCPUShares {
			p.CPUShares = c.MaxCPUShares
		}
	}
	if c.MaxTimeout <= 0 {
		return
	}
	for _, t := range []struct {
		field string
		asked stromboli.Duration
	}{{"claude.timeout", spec.Claude.Timeout}, {"podman.timeout", spec.Podman.Timeout}} {
		if asked := time.Duration(t.asked); asked > c.MaxTimeout {
			p.clamped(t.field, asked.String(), c.MaxTimeout.String(), "STROMBOLI_RESOURCES_MAX_TIMEOUT")
		}
	}
	p.ClaudeTimeout, p.SandboxTimeout = min(p.ClaudeTimeout, c.MaxTimeout), min(p.SandboxTimeout, c.MaxTimeout)
}

func (p *Plan) clamped(field, asked, most, setting string) {
	p.Warnings = append(p.Warnings, stromboli.Warning{
		Code:    WarningClamped,
		Message: fmt.Sprintf("%s: %s was asked for; the run gets %s, the most that this server gives (%s)", field, asked, most, setting),
	})
}

// size shows bytes in the largest unit that has no rest.
func size(n int64) string {
	unit := ""
	for _, next := range []string{"k", "m", "g", "t"} {
		if n < 1024 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, next
	}
	return strconv.FormatInt(n, 10) + unit
}
