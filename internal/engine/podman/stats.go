package podman

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// Stats implements engine.Containers.
func (c *Client) Stats(ctx context.Context, id string) (engine.Stats, error) {
	op := "read stats of container " + id
	var answer struct {
		Error any
		Stats []struct {
			CPUNano  uint64
			MemUsage uint64
			MemLimit uint64
			PIDs     uint64
		}
	}
	err := c.call(ctx, request{
		op: op, method: http.MethodGet, path: "/containers/stats",
		query: url.Values{"containers": {id}, "stream": {"false"}}, limit: queryLimit,
	}, &answer)
	if err != nil || len(answer.Stats) == 0 {
		// Podman may answer the same for one that doesn't exist.
		if _, err := c.Inspect(ctx, id); err != nil {
			return engine.Stats{}, err
		}
	}
	if err != nil {
		return engine.Stats{}, err
	}
	if len(answer.Stats) == 0 {
		return engine.Stats{}, &engine.Error{Op: op, Message: "the engine has none for it; it may not be running", Kind: engine.ErrConflict}
	}
	s := answer.Stats[0]
	return engine.Stats{
		CPU:         time.Duration(clampInt64(s.CPUNano)),
		MemoryBytes: clampInt64(s.MemUsage), MemoryLimit: clampInt64(s.MemLimit), Pids: clampInt64(s.PIDs),
	}, nil
}

// clampInt64 keeps the kernel's "no limit", the largest number there is, positive.
func clampInt64(v uint64) int64 {
	const most = 1<<63 - 1
	return int64(min(v, most))
}
