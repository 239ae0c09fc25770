package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// problems collects what is wrong, so that all of it is told at once.
type problems []error

// check adds a problem with a variable where something is wrong.
func (p *problems) check(wrong bool, variable, format string, args ...any) {
	if wrong {
		*p = append(*p, fmt.Errorf("%s: %s", variable, fmt.Sprintf(format, args...)))
	}
}

func (c *Config) validate() error {
	var p problems
	for _, err := range []error{c.validateAddress(), c.validateAuth(), c.Metrics.validate(), c.Log.validate()} {
		if err != nil {
			p = append(p, err)
		}
	}
	for _, r := range c.Agent.InsecureRegistries {
		p.check(r == "" || strings.ContainsAny(r, "/* "), "STROMBOLI_AGENT_INSECURE_REGISTRIES", "%q is not host or host:port", r)
	}
	for _, v := range c.Agent.AllowedVolumes {
		p.check(!filepath.IsAbs(v), "STROMBOLI_AGENT_ALLOWED_VOLUMES", "%q is not an absolute path", v)
	}
	for _, h := range c.Server.AllowedHosts {
		p.check(strings.TrimSpace(h) == "" || strings.Contains(h, "/"), "STROMBOLI_SERVER_ALLOWED_HOSTS", "%q is not a host or host:port", h)
	}
	p.check(c.Server.MaxBody < 1024, "STROMBOLI_SERVER_MAX_BODY", "must be at least 1024 bytes")
	p.check(c.Server.MaxConnections < 1, "STROMBOLI_SERVER_MAX_CONNECTIONS", "must be at least 1")
	p.check(c.Server.MaxPerAddress < 1, "STROMBOLI_SERVER_MAX_CONNECTIONS_PER_ADDRESS", "must be at least 1")
	p.check(c.QueueMax < 0, "STROMBOLI_QUEUE_MAX", "must not be negative")
	p.check(c.QueueStuckAfter <= 0, "STROMBOLI_QUEUE_STUCK_AFTER", "must be longer than 0")
	p.check(c.Agent.PullTimeout < time.Second, "STROMBOLI_AGENT_PULL_TIMEOUT", "must be at least 1s")
	p.check(c.Runs.Max < 0, "STROMBOLI_RUNS_MAX", "must not be negative")
	p.check(c.Runs.BackgroundWait < 0, "STROMBOLI_RUNS_BACKGROUND_WAIT", "must not be negative")
	p.check(c.Resources.Timeout < time.Second, "STROMBOLI_RESOURCES_TIMEOUT", "must be at least 1s")
	p.check(c.Jobs.CleanupTTL < time.Minute, "STROMBOLI_JOBS_CLEANUP_TTL", "must be at least 1m")
	p.check(c.Jobs.CleanupInterval < time.Second, "STROMBOLI_JOBS_CLEANUP_INTERVAL", "must be at least 1s")
	p.check(c.Webhook.Timeout < time.Second || c.Webhook.Timeout > 2*time.Minute, "STROMBOLI_WEBHOOK_TIMEOUT", "must be from 1s to 2m")
	p.check(c.Webhook.CleanupTTL < time.Minute, "STROMBOLI_WEBHOOK_CLEANUP_TTL", "must be at least 1m")
	p.check(c.Audit.MaxFileSize < 4096, "STROMBOLI_AUDIT_MAX_FILE_SIZE", "must be at least 4096 bytes")
	p.check(c.Audit.MaxFileAge < time.Minute, "STROMBOLI_AUDIT_MAX_FILE_AGE", "must be at least 1m")
	p.check(!(c.Tracing.SampleRatio >= 0 && c.Tracing.SampleRatio <= 1), "STROMBOLI_TRACING_SAMPLE_RATIO", "must be from 0 to 1") // NaN is neither
	p.check(c.Tracing.ServiceName == "", "STROMBOLI_TRACING_SERVICE_NAME", "must not be empty")
	p.check(c.OrphanTimeout < time.Second, "STROMBOLI_ORPHAN_TIMEOUT", "must be at least 1s")
	p.check(!slices.Contains([]string{"auto", "none"}, c.Sandbox.UserNS), "STROMBOLI_SANDBOX_USERNS", "%q is neither auto nor none", c.Sandbox.UserNS)
	p.check(!slices.Contains([]string{"default", "unconfined"}, c.Sandbox.Seccomp), "STROMBOLI_SANDBOX_SECCOMP", "%q is neither default nor unconfined", c.Sandbox.Seccomp)
	for _, ns := range []struct{ variable, value string }{
		{"STROMBOLI_SANDBOX_IPCNS", c.Sandbox.IPCNS}, {"STROMBOLI_SANDBOX_UTSNS", c.Sandbox.UTSNS}, {"STROMBOLI_SANDBOX_CGROUPNS", c.Sandbox.CgroupNS},
	} {
		p.check(ns.value != "private" && ns.value != "host", ns.variable, "%q is neither private nor host", ns.value)
	}
	c.checkRetention(&p)
	p.check(c.Sandbox.Keep < 0, "STROMBOLI_SANDBOX_KEEP", "must not be negative")
	p.check(c.Sandbox.KeepMax < 0, "STROMBOLI_SANDBOX_KEEP_MAX", "must not be negative")
	p.check(c.Sandbox.PidsLimit != 0 && c.Sandbox.PidsLimit < minPids, "STROMBOLI_SANDBOX_PIDS_LIMIT", "must be at least %d, or 0 for no limit", minPids)
	p.check(c.Sandbox.OpenFiles != 0 && c.Sandbox.OpenFiles < minOpenFiles, "STROMBOLI_SANDBOX_OPEN_FILES", "must be at least %d, or 0 for as many as the engine gives", minOpenFiles)
	return errors.Join(p...)
}

// What the sandbox's own init and the agent's CLI need at least.
const (
	minPids      = 64
	minOpenFiles = 256
)

func (c *Config) validateAddress() error {
	const variable = "STROMBOLI_SERVER_ADDRESS"
	var p problems
	if path, ok := c.Socket(); ok {
		p.check(!filepath.IsAbs(path) || strings.HasSuffix(path, "/"), variable, "%q is not unix:// and an absolute path", c.Server.Address)
		p.check(c.TLS.Cert != "", "STROMBOLI_TLS_CERT", "a unix socket is not encrypted: %s is %s", variable, c.Server.Address)
	} else if _, _, err := net.SplitHostPort(c.Server.Address); err != nil {
		p.check(true, variable, "%q is not host:port, nor unix:///path", c.Server.Address)
	}
	_, err := c.SocketMode()
	p.check(err != nil, "STROMBOLI_SERVER_SOCKET_MODE", "%q is not an octal mode such as 0660", c.Server.SocketMode)
	p.check(c.TLS.Cert == "" && c.TLS.Key != "", "STROMBOLI_TLS_CERT", "STROMBOLI_TLS_KEY is set and this isn't")
	p.check(c.TLS.Cert != "" && c.TLS.Key == "", "STROMBOLI_TLS_KEY", "STROMBOLI_TLS_CERT is set and this isn't")
	return errors.Join(p...)
}

// unixScheme is what the address of a unix socket begins with.
const unixScheme = "unix://"

// Socket is the path of the unix socket to listen on, where it is one.
func (c *Config) Socket() (path string, ok bool) {
	return strings.CutPrefix(c.Server.Address, unixScheme)
}

// SocketMode is the mode of that socket.
func (c *Config) SocketMode() (fs.FileMode, error) {
	mode, err := strconv.ParseUint(c.Server.SocketMode, 8, 32)
	if err == nil && mode > 0o777 {
		err = errors.New("it has more than permissions")
	}
	return fs.FileMode(mode), err
}

// ListensAt puts the address of a listener that was handed over in place of the
// configured one, and judges it as that.
func (c *Config) ListensAt(address string) error {
	c.Server.Address = address
	return errors.Join(c.validateAddress(), c.validateAuth())
}

// strangers reports whether others than this machine's users may reach the
// address.
func (c *Config) strangers() bool {
	_, unix := c.Socket()
	return !unix && !loopback(hostOf(c.Server.Address))
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address) // validated
	return host
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
