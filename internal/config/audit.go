package config

import (
	"path/filepath"
	"time"
)

// Audit is the log of who did what.
type Audit struct {
	// Enabled keeps the audit log: each request that acts is recorded before it does
	// and before it is answered, and refused with 503 where that can't be.
	Enabled bool `env:"ENABLED" envDefault:"true"`
	// File is where: an absolute path; full files and the head lie beside it. Default:
	// audit/audit.jsonl in the data directory. No two servers may share one.
	File string `env:"FILE"`
	// MaxFileSize is the size in bytes at which the next file is begun.
	MaxFileSize int64 `env:"MAX_FILE_SIZE" envDefault:"33554432"`
	// MaxFileAge is the age of a file's first record at which the next is begun.
	MaxFileAge time.Duration `env:"MAX_FILE_AGE" envDefault:"24h"`
}

// AuditFile is where the audit log is written.
func (c *Config) AuditFile() string {
	if c.Audit.File != "" {
		return c.Audit.File
	}
	return filepath.Join(c.DataDir, "audit", "audit.jsonl")
}
