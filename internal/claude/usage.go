package claude

import (
	"maps"
	"math"
	"slices"

	"github.com/tomblancdev/stromboli"
)

// usage adds up what a run used. Results carry it per model, since the result
// before; messages after the last result count as far as they said so
// themselves, which is what is known when a turn never came to its result.
type usage struct {
	model    string
	sum      apiUsage
	costUSD  float64
	counted  bool
	previous map[string]modelUsage // cumulative, of the result before
	open     map[string]apiUsage   // by message id, since the last result
}

type modelUsage struct {
	Input         int64   `json:"inputTokens"`
	Output        int64   `json:"outputTokens"`
	CacheRead     int64   `json:"cacheReadInputTokens"`
	CacheCreation int64   `json:"cacheCreationInputTokens"`
	CostUSD       float64 `json:"costUSD"`
}

func (u *usage) setModel(m string) {
	if m != "<synthetic>" {
		u.model = shorten(m)
	}
}

func (u *usage) addMessage(m message) {
	if m.ID == "" || m.Model == "<synthetic>" {
		return
	}
	if u.model == "" {
		u.setModel(m.Model)
	}
	if u.open == nil {
		u.open = map[string]apiUsage{}
	}
	if id := shorten(m.ID); len(u.open) < maxQueued {
		u.open[id] = m.Usage
	}
}

func (u *usage) addResult(o object) {
	u.counted = true
	u.open = nil
	total := get[map[string]modelUsage](o, "modelUsage")
	since := get[map[string]modelUsage](o, "model_usage_since_last_result")
	switch {
	case since != nil:
	case u.previous != nil && total != nil:
		since = map[string]modelUsage{}
		for name, m := range total {
			p := u.previous[name]
			since[name] = modelUsage{
				Input: m.Input - p.Input, Output: m.Output - p.Output, CostUSD: m.CostUSD - p.CostUSD,
				CacheRead: m.CacheRead - p.CacheRead, CacheCreation: m.CacheCreation - p.CacheCreation,
			}
		}
	default:
		// The totals of a resumed conversation hold earlier runs too.
		u.sum.add(get[apiUsage](o, "usage"))
	}
	costliest, most := "", -1.0
	for _, name := range slices.Sorted(maps.Keys(since)) {
		m := since[name]
		u.sum.add(apiUsage{Input: m.Input, Output: m.Output, CacheCreation: m.CacheCreation, CacheRead: m.CacheRead})
		if m.CostUSD < 0 || m.CostUSD > maxBudget {
			continue
		}
		u.costUSD += m.CostUSD
		if m.CostUSD > most {
			costliest, most = name, m.CostUSD
		}
	}
	if u.model == "" {
		u.setModel(costliest)
	}
	if total != nil {
		u.previous = total
	}
}

// add sums without ever going down or around: the numbers are the sandbox's.
func (a *apiUsage) add(b apiUsage) {
	for _, p := range []struct {
		to   *int64
		from int64
	}{{&a.Input, b.Input}, {&a.Output, b.Output}, {&a.CacheCreation, b.CacheCreation}, {&a.CacheRead, b.CacheRead}} {
		const limit = math.MaxInt64 / 8
		*p.to = min(*p.to+min(max(p.from, 0), limit), limit)
	}
}

// total is nil as long as the model was never asked.
func (u *usage) total() *stromboli.Usage {
	if !u.counted && len(u.open) == 0 {
		return nil
	}
	sum := u.sum
	for _, m := range u.open {
		sum.add(m)
	}
	return &stromboli.Usage{
		Model:                    u.model,
		InputTokens:              sum.Input,
		OutputTokens:             sum.Output,
		CacheCreationInputTokens: sum.CacheCreation,
		CacheReadInputTokens:     sum.CacheRead,
		TotalTokens:              sum.Input + sum.Output + sum.CacheCreation + sum.CacheRead,
		EstimatedCostUSD:         u.costUSD,
	}
}
