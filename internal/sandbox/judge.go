package sandbox

import (
	"fmt"
	"math"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// submounts judges what the host has mounted below a volume's source: it comes
// with the volume, and the engine applies the volume's options to its top alone.
func (j *judgement) submounts(mounted map[string]shim.MountFact) {
	asked := map[string]bool{}
	for _, m := range j.spec.Mounts {
		asked[m.Target] = true
	}
	for _, want := range j.spec.Mounts {
		if !want.ReadOnly && !want.NoExec {
			continue
		}
		for target, got := range mounted {
			if asked[target] || !below(target, want.Target) {
				continue
			}
			j.unless(got.RO || !want.ReadOnly, "%s, a mount of the host's within %s, can be written", target, want.Target)
			j.unless(has(got, "noexec") || !want.NoExec, "programs in %s, a mount of the host's within %s, can be executed", target, want.Target)
		}
	}
}

// cpuShares compares the relative weight, which cgroup v2 has in a unit of its
// own: each of the ways in which runtimes convert shares to it is right.
func (j *judgement) cpuShares(c shim.CgroupLimits) (what string, ok bool) {
	asked := j.spec.CPUShares
	if c.CPUWeight < 0 {
		j.a.Limits["cpu_shares"] = stromboli.AttestedLimit{Asked: asked, InForce: c.CPUShares}
		return fmt.Sprintf("cpu_shares: asked for %d, in force %d", asked, c.CPUShares), asked == 0 || asked == c.CPUShares
	}
	limit := stromboli.AttestedLimit{InForce: c.CPUWeight}
	if asked > 0 {
		for _, weight := range cpuWeights(asked) {
			ok = ok || weight == c.CPUWeight
			limit.Asked = weight
			if ok {
				break
			}
		}
	}
	j.a.Limits["cpu_weight"] = limit
	return fmt.Sprintf("cpu_shares: asked for %d, a weight of %d, in force %d", asked, limit.Asked, c.CPUWeight), ok || asked == 0
}

// cpuWeights are the weights in cgroup v2 to which runtimes convert shares: by a
// straight line (runc up to 1.3, crun up to 1.22), or by a curve in which
// 1024 shares are the default weight of 100.
func cpuWeights(shares int64) []int64 {
	line := 1 + (shares-2)*9999/262142
	if shares <= 2 {
		return []int64{line}
	}
	l := math.Log2(float64(shares))
	curve := int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
	return []int64{min(curve, 10000), line}
}
