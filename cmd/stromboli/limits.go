package main

import (
	"errors"
	"fmt"
	"math"
	"syscall"

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
	hosts, err := webhookHosts(cfg)
	if err != nil {
		return policy.Config{}, err
	}
	patterns, err := policy.ParseImagePatterns(cfg.Agent.AllowedImagePatterns)
	if err != nil {
		return policy.Config{}, err
	}
	return policy.Config{
		Network: network, Webhooks: hosts,
		Image: image, ImagePatterns: patterns, Memory: memory, NanoCPUs: cpus, Timeout: cfg.Resources.Timeout,
		AllowedVolumes: cfg.Agent.AllowedVolumes, Protected: []string{cfg.DataDir, cfg.SessionsDir(), cfg.SharedDir()}, Home: sandbox.HomePath,
	}, nil
}

// diskLimits reads what sandboxes may take of the disk, and the reserve of free
// space; negative: what suits the file system.
func diskLimits(cfg *config.Config) (limit, reserve int64, err error) {
	if limit, err = policy.ParseSize(cfg.Resources.Disk); err != nil {
		return 0, 0, fmt.Errorf("STROMBOLI_RESOURCES_DISK: %w", err)
	}
	if limit > 0 && limit < minDisk {
		return 0, 0, errors.New("STROMBOLI_RESOURCES_DISK: must be at least 1m, or 0 for no limit")
	}
	reserve = -1
	if cfg.DiskReserve != "" {
		if reserve, err = policy.ParseSize(cfg.DiskReserve); err != nil {
			return 0, 0, fmt.Errorf("STROMBOLI_DISK_RESERVE: %w", err)
		}
	}
	return limit, reserve, nil
}

// minDisk is the least with which an agent can begin.
const minDisk = 1 << 20

// maxConnections is the cap on connections: half of the open files are for what
// the requests are about.
func (s *server) maxConnections() int {
	most := s.cfg.Server.MaxConnections
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return most
	}
	if half := max(int(min(files.Cur, math.MaxInt32)/2), 1); half < most {
		s.log.Warn("fewer connections than configured are possible: the limit of open files is low", "connections", half, "configured", most)
		return half
	}
	return most
}
