package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/backup"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/secret"
	"github.com/tomblancdev/stromboli/internal/store"
)

// backupTries is how often database and blobs are taken again when a blob of the
// database's state was deleted before it was held: a matter of milliseconds.
const backupTries = 100

type backupCommand struct {
	Dest       string `arg:"" help:"Directory to make; there must be nothing under that name." type:"path"`
	SecretsKey bool   `help:"Copy the key of callers' secrets too. With it the backup is as sensitive as this host; without it keep a copy of that file elsewhere."`
	Sessions   bool   `help:"Copy the sessions' homes and workspaces too. Conversations are in every backup; these are what else agents have written."`
	JSON       bool   `name:"json" help:"Print what was made as JSON."`
}

// Help is shown after the flags.
func (backupCommand) Help() string {
	return "Copies the database and the transcripts that its rows name, as they were at one moment. The server may run meanwhile. See docs/backup.md."
}

// Run makes a backup of the configured data directory.
func (c backupCommand) Run(ctx context.Context, p process) (err error) {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	data, err := filepath.EvalSymlinks(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("data directory (STROMBOLI_DATA_DIR): %w", err)
	}
	if parent, err := filepath.EvalSymlinks(filepath.Dir(c.Dest)); err == nil && (parent+"/" == data+"/" || strings.HasPrefix(parent+"/", data+"/")) {
		return fmt.Errorf("%s lies in the data directory", c.Dest)
	}
	w, err := backup.Create(c.Dest)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	m, err := c.fill(ctx, p, cfg, data, w)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if c.JSON {
		return json.NewEncoder(p.stdout).Encode(struct {
			Path string `json:"path"`
			backup.Manifest
		}{c.Dest, m})
	}
	_, err = fmt.Fprintf(p.stdout, "%s: %d runs, %d sessions, %d files, schema %d\n", c.Dest, m.Runs, m.Sessions, len(m.Files), m.Schema)
	return err
}

func (c backupCommand) fill(ctx context.Context, p process, cfg *config.Config, data string, w *backup.Writer) (m backup.Manifest, err error) {
	stage, err := backup.NewStage(filepath.Join(data, "backup"), filepath.Join(data, "blobs"))
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, stage.Close()) }()
	var keys []string
	var info store.SnapshotInfo
	_, _ = fmt.Fprintln(p.stderr, "stromboli: copying the database")
	for try := 1; ; try++ {
		if err := stage.HoldAll(ctx); err != nil {
			return m, err
		}
		m.At = time.Now().UTC()
		info, err = store.Snapshot(ctx, filepath.Join(data, "stromboli.db"), w.Path(backup.Database), func(blobs []string) error {
			keys = blobs
			return stage.Hold(blobs)
		})
		if err == nil {
			break
		}
		if !errors.Is(err, backup.ErrGone) || try == backupTries {
			return m, err
		}
	}
	m.Program, m.Schema, m.Runs, m.Sessions = version, info.Schema, info.Runs, info.Sessions
	if _, err := store.CheckFile(ctx, w.Path(backup.Database)); err != nil {
		return m, err
	}
	if err := w.Added(ctx, backup.Database); err != nil {
		return m, err
	}
	for i, key := range keys {
		if i%1000 == 0 {
			_, _ = fmt.Fprintf(p.stderr, "stromboli: copying transcripts: %d of %d\n", i, len(keys))
		}
		f, err := stage.Open(key)
		if err != nil {
			return m, err
		}
		if err := errors.Join(w.Add(ctx, backup.Blobs+"/"+key, f), f.Close()); err != nil {
			return m, err
		}
	}
	if c.SecretsKey {
		if err := c.addKey(ctx, cfg, data, w); err != nil {
			return m, err
		}
	}
	if c.Sessions {
		_, _ = fmt.Fprintln(p.stderr, "stromboli: copying homes and workspaces")
		private := func(name string) bool { return strings.HasPrefix(name, ".") } // the server's own
		top := func(name string) bool { return !strings.Contains(name, "/") && private(name) }
		if err := w.AddTree(ctx, backup.Sessions, cfg.SessionsDir(), top, func(name, why string) {
			_, _ = fmt.Fprintf(p.stderr, "stromboli: %s is left out: %s\n", filepath.Join(cfg.SessionsDir(), name), why)
		}); err != nil {
			return m, err
		}
	}
	return w.Commit(ctx, m)
}

// addKey copies the key file. A file that only just appears is no fault of a backup
// without secrets.
func (c backupCommand) addKey(ctx context.Context, cfg *config.Config, data string, w *backup.Writer) error {
	path := keyFile(cfg, &dataDir{path: data})
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the key of callers' secrets (STROMBOLI_SECRETS_KEY_FILE): %w", err)
	}
	return errors.Join(w.Add(ctx, backup.KeyFile, f), f.Close())
}

type restoreCommand struct {
	Src     string `arg:"" help:"A backup's directory." type:"existingdir"`
	DataDir string `help:"Where to: a directory that is empty or missing. Default: STROMBOLI_DATA_DIR." type:"path"`
}

// Help is shown after the flags.
func (restoreCommand) Help() string {
	return "Checks the whole backup first. Runs that had not ended when it was made end as crashed at the server's next start, none is started again; logins are void. See docs/backup.md."
}

const actRestored = "data.restored"

// Run puts a backup into an empty data directory.
func (c restoreCommand) Run(ctx context.Context, p process) (err error) {
	cfg, err := p.config()
	if err != nil {
		return err
	}
	if c.DataDir != "" {
		cfg.DataDir = c.DataDir
	}
	src, err := backup.Open(c.Src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	_, _ = fmt.Fprintln(p.stderr, "stromboli: checking the backup")
	if err := src.Verify(ctx); err != nil {
		return err
	}
	if _, err := store.CheckFile(ctx, src.Path(backup.Database)); err != nil {
		return fmt.Errorf("%s: %w", c.Src, err)
	}
	dir, err := openDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.close()) }()
	cfg.DataDir = dir.path
	if err := c.empty(cfg, dir, src); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(p.stderr, "stromboli: restoring")
	if err := c.fill(ctx, cfg, dir, src); err != nil {
		return fmt.Errorf("restore (remove what is in %s before it is tried again): %w", dir.path, err)
	}
	log := newLogs(cfg.Log, p).Part("server")
	trail, err := openAudit(ctx, cfg, log)
	if err != nil {
		return fmt.Errorf("the data is restored; %w", err)
	}
	if trail != nil {
		recordDoing(ctx, trail, log, actRestored, stromboli.AuditOK, map[string]string{"state_of": src.Manifest.At.Format(time.RFC3339), "from": c.Src})
		if err := trail.Close(); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(p.stdout, "%s: %d runs, %d sessions as they were at %s\n", dir.path, src.Manifest.Runs, src.Manifest.Sessions, src.Manifest.At.Format(time.RFC3339))
	if !src.Manifest.Has(backup.KeyFile) {
		_, _ = fmt.Fprintf(p.stdout, "the backup has no key of callers' secrets: put yours to %s before the server starts, or it makes a new one, with which they can't be opened\n", keyFile(cfg, dir))
	}
	return nil
}

// empty refuses what would be overwritten.
func (c restoreCommand) empty(cfg *config.Config, dir *dataDir, src *backup.Source) error {
	entries, err := os.ReadDir(dir.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			return fmt.Errorf("%s is not empty (%s): a restore replaces nothing; give it an empty directory, or move what is there away", dir.path, e.Name())
		}
	}
	if src.Manifest.Has(backup.KeyFile) {
		if _, err := os.Lstat(keyFile(cfg, dir)); err == nil {
			return fmt.Errorf("there is a key file already: %s (STROMBOLI_SECRETS_KEY_FILE)", keyFile(cfg, dir))
		}
	}
	if src.Manifest.Has(backup.Sessions) {
		if there, err := os.ReadDir(cfg.SessionsDir()); err == nil && len(there) > 0 {
			return fmt.Errorf("%s is not empty (STROMBOLI_AGENT_SESSIONS_DIR)", cfg.SessionsDir())
		}
	}
	return nil
}

// fill makes the files. Until all are there a marker keeps servers away.
func (c restoreCommand) fill(ctx context.Context, cfg *config.Config, dir *dataDir, src *backup.Source) (err error) {
	root, err := os.OpenRoot(dir.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	if err := errors.Join(root.WriteFile(restoring, nil, 0o600), syncTree(root)); err != nil {
		return err
	}
	for _, f := range src.Manifest.Files {
		switch f.Path {
		case backup.KeyFile, backup.Sessions:
			continue
		}
		if err := src.Copy(ctx, f, root, f.Path); err != nil {
			return err
		}
	}
	if src.Manifest.Has(backup.KeyFile) {
		if err := copyKey(src, keyFile(cfg, dir)); err != nil {
			return err
		}
	}
	if src.Manifest.Has(backup.Sessions) {
		if err := unpackSessions(ctx, src, cfg.SessionsDir()); err != nil {
			return err
		}
	}
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(dir.path, "stromboli.db")})
	if err != nil {
		return err
	}
	if err := errors.Join(st.Restored(ctx), st.Close()); err != nil { //nolint:contextcheck // closing is not cut short
		return err
	}
	if err := syncTree(root); err != nil {
		return err
	}
	if err := root.Remove(restoring); err != nil {
		return err
	}
	return syncTree(root)
}

func copyKey(src *backup.Source, path string) error {
	f, err := src.Read(backup.KeyFile)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	_, err = secret.OpenKeyring(path) // it is one
	return err
}

func unpackSessions(ctx context.Context, src *backup.Source, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return errors.Join(src.Unpack(ctx, backup.Sessions, root), root.Close())
}

// syncTree makes the entries of the server's own directories durable.
func syncTree(root *os.Root) error {
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || !e.IsDir():
			return err
		case name == "sessions":
			return fs.SkipDir
		}
		d, err := root.Open(name)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	})
}
