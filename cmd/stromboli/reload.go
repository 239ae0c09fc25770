package main

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
)

// reloadTime bounds the wait for an egress that is not there.
const reloadTime = 10 * time.Second

// reloads reads the configuration anew at each signal, until ctx ends.
func (s *server) reloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.hangup:
			s.reload(ctx)
		}
	}
}

// reload takes a changed configuration over, whole or not at all, and says so.
func (s *server) reload(ctx context.Context) {
	changed, err := s.takeOver(ctx)
	if err != nil {
		// Names and paths are nobody else's to know.
		s.reloadFault.Store(new("the newest reload was refused, and what was before is in force: the log says why"))
		s.log.ErrorContext(ctx, "the configuration was not reloaded; the one before stays in force", "error", err)
		recordDoing(ctx, s.audit, s.log, actConfigReload, stromboli.AuditRefused, nil)
		return
	}
	s.reloadFault.Store(nil)
	if len(changed) == 0 {
		s.log.InfoContext(ctx, "nothing has changed in the configuration file; variables of the environment are read at the start alone")
	}
	s.log.InfoContext(ctx, "the configuration was reloaded", "changed", strings.Join(changed, " "))
	recordDoing(ctx, s.audit, s.log, actConfigReload, stromboli.AuditOK, map[string]string{"changed": strings.Join(changed, " ")})
}

// takeOver judges what the configuration is by now and puts it in force. Once
// everything was judged nothing can fail.
func (s *server) takeOver(ctx context.Context) (changed []string, err error) {
	cfg, err := s.source()
	if err != nil {
		return nil, err
	}
	changed, restart := cfg.Changed(s.loaded)
	if len(restart) > 0 {
		return nil, fmt.Errorf("what has changed takes a restart: %s", strings.Join(restart, ", "))
	}
	loaded := *cfg
	cfg.DataDir, cfg.CacheDir, cfg.Agent.SessionsDir = s.cfg.DataDir, s.cfg.CacheDir, s.cfg.Agent.SessionsDir // as places resolved them
	cfg.Server.Address = s.cfg.Server.Address                                                                 // or that of the socket that was handed over
	next, err := newPolicies(cfg, s.environ, s.log, s.own()...)
	if err != nil {
		return nil, err
	}
	next.limits.Protected = withoutLinks(append(next.limits.Protected, s.engine.Socket()))
	if err := s.auth.SetTokens(next.tokens); err != nil {
		return nil, err
	}
	if !reflect.DeepEqual(next.rate, s.policies.rate) { // else what was counted stays counted
		if err := s.api.SetRateLimit(next.rate); err != nil {
			return nil, err
		}
	}
	for _, note := range cfg.NoEffect() {
		s.log.WarnContext(ctx, note)
	}
	s.policies, s.loaded = next, &loaded
	s.boxes.SetVolumes(allowedVolumes(cfg), next.limits.Protected)
	s.images.SetPatterns(next.limits.ImagePatterns)
	s.hooks.SetAllow(next.limits.Webhooks)
	s.runner.SetPolicy(next.limits)
	s.runner.SetMaxRunning(maxRunning(cfg, next.limits, s.memory))
	parts, _ := cfg.Log.PartLevels() // validated
	s.logs.SetLevels(cfg.Log.SlogLevel(), parts)
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	if err := s.model.setNetwork(ctx, cfg.Egress); err != nil {
		s.log.WarnContext(ctx, "egress has the new configuration as soon as it answers", "error", err)
	}
	return changed, nil
}

// configFault says why the newest reload failed; empty: it didn't.
func (s *server) configFault() string {
	if fault := s.reloadFault.Load(); fault != nil {
		return *fault
	}
	return ""
}
