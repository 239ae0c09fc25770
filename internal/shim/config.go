package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Where things are in a sandbox.
const (
	// DefaultHostDir is the directory, mounted read-only, that holds ConfigName
	// and the two sockets.
	DefaultHostDir = "/run/stromboli/host"
	// DefaultRunDir is a tmpfs of the sandbox's root; the shim makes it 0700
	// and keeps its spool there.
	DefaultRunDir = "/run/stromboli"
	// DefaultForwardAddr is the sandbox's one door to the outside.
	DefaultForwardAddr = "127.0.0.1:3128"

	ConfigName   = "config.json" // the shim's Config, in the host directory
	ServerSocket = "server.sock" // the server listens here, in the host directory
	EgressSocket = "egress.sock" // the egress process listens here, in the host directory
)

// Config is what the shim reads at its start. Zero fields get the defaults.
type Config struct {
	// Sandbox and Token are what the shim shows to the server; the token also
	// goes before every forwarded connection. Required.
	Sandbox string `json:"sandbox"`
	Token   string `json:"token"`
	// OrphanTimeoutMS is how long the agent may go on without a server, in
	// milliseconds. Default 10 minutes; negative: for ever.
	OrphanTimeoutMS int64 `json:"orphan_timeout_ms,omitempty"`
	// SpoolLimitBytes bounds the lines that the server has not acknowledged;
	// above it the agent waits. Default 64 MiB.
	SpoolLimitBytes int64 `json:"spool_limit_bytes,omitempty"`
	// LineLimitBytes bounds one line; the rest is dropped and counted.
	// Default and maximum 8 MiB.
	LineLimitBytes int `json:"line_limit_bytes,omitempty"`
	// ForwardAddr is the TCP address to forward from. Default
	// DefaultForwardAddr; "-" forwards nothing.
	ForwardAddr string `json:"forward_addr,omitempty"`
	// MaxForwards bounds the forwarded connections; above it new ones wait in
	// the kernel's queue. Default 256.
	MaxForwards int `json:"max_forwards,omitempty"`
	// HoldMS is how long a connection waits for an absent egress, in
	// milliseconds. Default 5 minutes.
	HoldMS int64 `json:"hold_ms,omitempty"`
	// Unfiltered leaves the shim's own system call filter out.
	Unfiltered bool `json:"unfiltered,omitempty"`
	// SilenceMS is how long a connected server may say nothing before it
	// counts as absent, in milliseconds. Default 10 seconds.
	SilenceMS int64 `json:"silence_ms,omitempty"`
}

// maxLine is the longest line that a frame carries.
const maxLine = 8 << 20

// maxConfig bounds the configuration file.
const maxConfig = 64 << 10

// readConfig reads the shim's configuration and fills in the defaults.
func readConfig(path string) (Config, error) {
	var cfg Config
	fi, err := os.Stat(path)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if fi.Size() > maxConfig {
		return cfg, fmt.Errorf("read configuration: %d bytes are too many", fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(b, &cfg); err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	return cfg.withDefaults()
}

func (c Config) withDefaults() (Config, error) {
	if c.Sandbox == "" || c.Token == "" {
		return c, fmt.Errorf("configuration: sandbox and token are required")
	}
	if c.OrphanTimeoutMS == 0 {
		c.OrphanTimeoutMS = (10 * time.Minute).Milliseconds()
	}
	if c.LineLimitBytes <= 0 || c.LineLimitBytes > maxLine {
		c.LineLimitBytes = maxLine
	}
	if c.SpoolLimitBytes <= 0 {
		c.SpoolLimitBytes = 64 << 20
	}
	// One line of each stream always fits, or the agent would wait for ever.
	if least := 4 * int64(c.LineLimitBytes+recordHeader); c.SpoolLimitBytes < least {
		return c, fmt.Errorf("configuration: spool_limit_bytes is below %d, four lines' worth", least)
	}
	if c.ForwardAddr == "" {
		c.ForwardAddr = DefaultForwardAddr
	}
	if c.MaxForwards <= 0 {
		c.MaxForwards = 256
	}
	if c.HoldMS <= 0 {
		c.HoldMS = (5 * time.Minute).Milliseconds()
	}
	return c, nil
}
