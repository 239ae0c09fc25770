package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/secret"
	"github.com/tomblancdev/stromboli/internal/store"
)

type secretsCommand struct {
	Rekey rekeyCommand `cmd:"" help:"Make a new key and seal every secret with it. The server must not be running."`
}

type rekeyCommand struct{}

// Help is shown after the flags.
func (rekeyCommand) Help() string {
	return "The key file (STROMBOLI_SECRETS_KEY_FILE, secrets.key in the data directory by default) gets a new key, every secret is sealed with it, " +
		"and the keys before are forgotten. Cut short at any point, nothing is lost: call it again."
}

// Run seals everything anew.
func (rekeyCommand) Run(ctx context.Context, p process) (err error) {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	dir, err := openDataDir(cfg.DataDir) // whoever has it open keeps keys in memory
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(dir.path, "stromboli.db")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }() //nolint:contextcheck // closing is not cut short
	vault, err := openVault(cfg, dir, st)
	if err != nil {
		return err
	}
	log := newLogs(cfg.Log, p).Part("server")
	trail, err := openAudit(ctx, cfg, log)
	if err != nil {
		return err
	}
	if trail != nil {
		defer func() { err = errors.Join(err, trail.Close()) }()
	}
	n, err := vault.Rekey(ctx)
	if err != nil {
		return fmt.Errorf("after %d secrets: %w", n, err)
	}
	recordDoing(ctx, trail, log, actSecretsRekey, stromboli.AuditOK, map[string]string{"secrets": strconv.Itoa(n)})
	_, _ = fmt.Fprintf(p.stdout, "%d secrets are sealed with a new key, in %s\n", n, keyFile(cfg, dir))
	return nil
}

func keyFile(cfg *config.Config, dir *dataDir) string {
	return cmp.Or(cfg.Secrets.KeyFile, filepath.Join(dir.path, "secrets.key"))
}

func openVault(cfg *config.Config, dir *dataDir, st *store.Store) (*secret.Vault, error) {
	keys, err := secret.OpenKeyring(keyFile(cfg, dir))
	if err != nil {
		return nil, fmt.Errorf("secrets (STROMBOLI_SECRETS_KEY_FILE): %w", err)
	}
	return secret.NewVault(st, keys), nil
}
