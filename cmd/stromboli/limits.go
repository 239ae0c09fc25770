package main

import (
	"fmt"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// policyConfig reads the limits out of the configuration.
func policyConfig(cfg *config.Config, image string) (policy.Config, error) {
	memory, err := policy.ParseSize(cfg.Resources.Memory)
	if err != nil {
		return policy.Config{}, fmt.Errorf("STROMBOLI_RESOURCES_MEMORY: %w", err)
	}
	cpus, err := policy.ParseCPUs(cfg.Resources.CPUs)
	if err != nil {
		return policy.Config{}, fmt.Errorf("STROMBOLI_RESOURCES_CPUS: %w", err)
	}
	network := policy.NetworkConfig{
		Mode: stromboli.NetworkMode(cfg.Egress.Mode), Allow: cfg.Egress.Allowlist, Deny: cfg.Egress.Deny, Bridge: cfg.Egress.Bridge,
	}
	if err := network.Validate(); err != nil {
		return policy.Config{}, err
	}
	return policy.Config{
		Network: network,
		Image:   image, Memory: memory, NanoCPUs: cpus, Timeout: cfg.Resources.Timeout,
		AllowedVolumes: cfg.Agent.AllowedVolumes, Protected: []string{cfg.DataDir, cfg.SessionsDir(), cfg.SharedDir()}, Home: sandbox.HomePath,
	}, nil
}
