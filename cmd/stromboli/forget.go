package main

import (
	"context"
	"time"
)

// Bounds of what one transaction deletes, so that other writes don't wait for
// long.
const (
	forgetRuns       = 200
	forgetDeliveries = 50 // each may hold a body of a megabyte
)

// forget deletes, every so often, what is remembered for a while only.
func (s *server) forget(ctx context.Context) error {
	sweeps := []struct {
		what string
		some func(context.Context) (int, error)
	}{
		{"expired idempotency keys", s.store.DeleteExpiredIdempotency},
		{"expired logins", s.store.DeleteExpiredGrants},
		{"finished runs", func(ctx context.Context) (int, error) {
			return s.store.DeleteFinishedRuns(ctx, time.Now().Add(-s.cfg.Jobs.CleanupTTL), forgetRuns)
		}},
		{"deliveries of webhooks", func(ctx context.Context) (int, error) {
			return s.store.DeleteFinishedDeliveries(ctx, time.Now().Add(-s.cfg.Webhook.CleanupTTL), forgetDeliveries)
		}},
	}
	tick := time.NewTicker(s.cfg.Jobs.CleanupInterval)
	defer tick.Stop()
	for {
		for _, sweep := range sweeps {
			n, err := sweep.some(ctx)
			for n > 0 && err == nil {
				n, err = sweep.some(ctx)
			}
			if err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "deleting "+sweep.what, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
