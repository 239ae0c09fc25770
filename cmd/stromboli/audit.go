package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/audit"
	"github.com/tomblancdev/stromboli/internal/config"
)

// What the audit log calls the doings that no request asks for.
const (
	actServerStart  = "server.start"
	actServerStop   = "server.stop"
	actSecretsRekey = "secret.rekey"
	actConfigReload = "config.reload"
)

type auditCommand struct {
	Verify auditVerifyCommand `cmd:"" help:"Look for records that were changed, are missing or stand in another place. The exit code is 1 where there are any."`
}

type auditVerifyCommand struct {
	File string   `help:"The audit log. Default: STROMBOLI_AUDIT_FILE, else audit/audit.jsonl in the data directory." type:"path"`
	Head []string `help:"A record's number and hash, as the server's log told them: 42:9f86d0… Against who rewrote the whole log. May be repeated." placeholder:"SEQ:HASH"`
}

// Help is shown after the flags.
func (auditVerifyCommand) Help() string {
	return "The server may run meanwhile. See docs/audit.md."
}

// Run verifies and tells.
func (c auditVerifyCommand) Run(p process) error {
	path := c.File
	if path == "" {
		cfg, err := p.config()
		if err != nil {
			return err
		}
		path = cfg.AuditFile()
	}
	var known []audit.Head
	for _, text := range c.Head {
		h, err := audit.ParseHead(text)
		if err != nil {
			return fmt.Errorf("--head: %q is not NUMBER:HASH", text)
		}
		known = append(known, h)
	}
	r, err := audit.Verify(path, known...)
	if err != nil {
		return err
	}
	for _, f := range r.Faults {
		_, _ = fmt.Fprintln(p.stdout, f)
	}
	if len(r.Faults) > 0 {
		return fmt.Errorf("the audit log %s is not as it was written", path)
	}
	_, _ = fmt.Fprintf(p.stdout, "%d records in %d files are whole; from %d to %d:%s\n", r.Records, r.Files, r.First, r.Last.Seq, r.Last.Hash)
	if r.Open > 0 {
		_, _ = fmt.Fprintf(p.stdout, "%d intents have no outcome: they go on, or a server died before it was known\n", r.Open)
	}
	if r.Torn > 0 {
		_, _ = fmt.Fprintf(p.stdout, "%d bytes at the end are a record that is being written, or was when a server died: its next start takes them away\n", r.Torn)
	}
	return nil
}

// openAudit opens the audit log; nil where there is none.
func openAudit(ctx context.Context, cfg *config.Config, log *slog.Logger) (*audit.Log, error) {
	if !cfg.Audit.Enabled {
		return nil, nil //nolint:nilnil // the zero value means off
	}
	l, err := audit.Open(ctx, audit.Config{Path: cfg.AuditFile(), MaxSize: cfg.Audit.MaxFileSize, MaxAge: cfg.Audit.MaxFileAge, Log: log})
	if errors.Is(err, audit.ErrInUse) {
		return nil, fmt.Errorf("%w: give this server its own by STROMBOLI_AUDIT_FILE", err)
	}
	return l, err
}

// recordDoing records one of the program's own doings. That it can't be is told and no more:
// a full disk must not keep a server from its runs.
func recordDoing(ctx context.Context, l *audit.Log, log *slog.Logger, action, outcome string, detail map[string]string) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := l.Append(ctx, stromboli.AuditRecord{Action: action, Outcome: outcome, Detail: detail})
	if err != nil {
		log.ErrorContext(ctx, "the audit log lacks one of the program's own doings", "action", action, "error", err)
	}
}
