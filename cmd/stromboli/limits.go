package main

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// policyConfig reads the limits out of the configuration.
func policyConfig(cfg *config.Config, image string) (policy.Config, error) {
	var errs []error
	memory, err := policy.ParseSize(cfg.Resources.Memory)
	if err != nil {
		errs = append(errs, fmt.Errorf("STROMBOLI_RESOURCES_MEMORY: %w", err))
	}
	cpus, err := policy.ParseCPUs(cfg.Resources.CPUs)
	if cfg.Resources.CPUs == "0" {
		cpus, err = 0, nil // no limit, which no request can ask for
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("STROMBOLI_RESOURCES_CPUS: %w", err))
	}
	network := policy.NetworkConfig{
		Mode: stromboli.NetworkMode(cfg.Egress.Mode), Allow: cfg.Egress.Allowlist, Deny: cfg.Egress.Deny, Bridge: cfg.Egress.Bridge,
	}
	hosts, hostsErr := webhookHosts(cfg)
	patterns, patternsErr := policy.ParseImagePatterns(cfg.Agent.AllowedImagePatterns)
	engineSecrets, secretsErr := policy.ParseSecretPatterns(cfg.Secrets.EngineNames)
	errs = append(errs, network.Validate(), hostsErr, patternsErr, secretsErr)
	limits := policy.Config{
		Network: network, Webhooks: hosts, EngineSecrets: engineSecrets,
		Image: image, ImagePatterns: patterns, Memory: memory, NanoCPUs: cpus, Timeout: cfg.Resources.Timeout,
		AllowedVolumes: cfg.Agent.AllowedVolumes, AllowAllVolumes: cfg.Agent.AllowAllVolumes,
		Protected: protected(cfg), Home: sandbox.HomePath,
	}
	if err := errors.Join(append(errs, maxima(cfg.Resources, &limits))...); err != nil {
		return policy.Config{}, err
	}
	return limits, nil
}

// maxima reads the most that a run may ask for. What runs get that don't say
// must be within it.
func maxima(r config.Resources, limits *policy.Config) (err error) {
	if r.MaxMemory != "" {
		if limits.MaxMemory, err = policy.ParseSize(r.MaxMemory); err != nil {
			return fmt.Errorf("STROMBOLI_RESOURCES_MAX_MEMORY: %w", err)
		}
		if limits.Memory == 0 || limits.Memory > limits.MaxMemory || limits.MaxMemory < policy.MinMemory {
			return fmt.Errorf("STROMBOLI_RESOURCES_MAX_MEMORY: %s is below STROMBOLI_RESOURCES_MEMORY (%s; 0 is no limit), or below 32m", r.MaxMemory, r.Memory)
		}
	}
	if r.MaxCPUs != "" {
		if limits.MaxNanoCPUs, err = policy.ParseCPUs(r.MaxCPUs); err != nil {
			return fmt.Errorf("STROMBOLI_RESOURCES_MAX_CPUS: %w", err)
		}
		if limits.NanoCPUs == 0 || limits.NanoCPUs > limits.MaxNanoCPUs {
			return fmt.Errorf("STROMBOLI_RESOURCES_MAX_CPUS: %s is below STROMBOLI_RESOURCES_CPUS (%s; 0 is no limit)", r.MaxCPUs, r.CPUs)
		}
	}
	if n := r.MaxCPUShares; n != 0 {
		if n < policy.MinCPUShares || n > policy.MaxCPUShares {
			return fmt.Errorf("STROMBOLI_RESOURCES_MAX_CPU_SHARES: %d is not %d to %d", n, policy.MinCPUShares, policy.MaxCPUShares)
		}
		limits.MaxCPUShares = n
	}
	if r.MaxTimeout != 0 && r.MaxTimeout < r.Timeout {
		return fmt.Errorf("STROMBOLI_RESOURCES_MAX_TIMEOUT: %s is below STROMBOLI_RESOURCES_TIMEOUT (%s)", r.MaxTimeout, r.Timeout)
	}
	limits.MaxTimeout = r.MaxTimeout
	return nil
}

// protected are the paths that no volume may hold or lie in: what the server
// keeps, and what would let an agent become it.
func protected(cfg *config.Config) []string {
	own := append(cfg.FileDirs(), cfg.DataDir, cfg.CacheDir, cfg.SessionsDir(), cfg.SharedDir())
	files := []string{cfg.Secrets.KeyFile, cfg.Agent.SecretsFile, cfg.Agent.CredentialsFile, cfg.Agent.TenantCredentialsFile, cfg.APITokensFile, cfg.File(), cfg.TLS.Cert, cfg.TLS.Key}
	if cfg.Audit.Enabled {
		files = append(files, filepath.Dir(cfg.AuditFile())) // the head and the full files lie there too
	}
	if socket, ok := cfg.Socket(); ok { // whoever reaches it may call the API
		files = append(files, socket)
	}
	tenants, _ := cfg.LoadTenantCredentials(nil) // what is wrong with them is told elsewhere
	for _, t := range tenants {
		files = append(files, t.File)
	}
	for _, file := range files {
		if file == "" {
			continue
		}
		if abs, err := filepath.Abs(file); err == nil {
			own = append(own, abs)
		}
	}
	return own
}

// withoutLinks adds to paths what they lead to.
func withoutLinks(paths []string) []string {
	all := slices.Clone(paths)
	for _, p := range paths {
		if real, err := filepath.EvalSymlinks(p); err == nil && real != p {
			all = append(all, real)
		}
	}
	return all
}

// allowedVolumes are the directories below which volumes may lie.
func allowedVolumes(cfg *config.Config) []string {
	if cfg.Agent.AllowAllVolumes {
		return []string{"/"}
	}
	return cfg.Agent.AllowedVolumes
}

// switchedOff reads what is switched off of the sandboxes' hardening.
func switchedOff(c config.Sandbox) sandbox.Off {
	return sandbox.Off{
		Seccomp: c.Seccomp == "unconfined", SyscallFilter: !c.SyscallFilter, ReadOnlyRoot: !c.ReadOnlyRoot, MaskedPaths: !c.MaskedPaths,
		IPC: c.IPCNS == "host", UTS: c.UTSNS == "host", Cgroup: c.CgroupNS == "host", Swap: c.Swap,
	}
}

// noneIsNegative turns configuration's 0 into what says "no limit" to a Manager.
func noneIsNegative(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
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
