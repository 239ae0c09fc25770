package egress

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A process that somebody else keeps is waited for and used, never started,
// and one of another build is asked to end.
func TestExternal(t *testing.T) {
	dir := t.TempDir()
	follow := func(build string) (*Supervisor, func()) {
		s := NewSupervisor(SupervisorConfig{Dir: dir, Build: build, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		return s, func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	}
	cfg := Config{Demo: true}
	one, stop := follow("one")
	early, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := one.SetConfig(early, cfg); err == nil || !strings.Contains(err.Error(), "egress is not there") {
		t.Errorf("with no process: %v", err)
	}
	kept := supervise(t, dir, "one")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := one.SetConfig(ctx, cfg); err != nil {
		t.Errorf("with a process: %v", err)
	}
	old := kept.pid(t)
	stop()
	_, stop = follow("two")
	defer stop()
	for {
		if st, err := kept.Status(ctx); err == nil && st.PID != old || ctx.Err() != nil {
			break // whoever keeps it has started it again
		}
		sleep(ctx, 10*time.Millisecond)
	}
	if ctx.Err() != nil {
		t.Error("a process of another build went on")
	}
}
