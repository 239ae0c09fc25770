package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tomblancdev/stromboli/internal/shim"
)

// directories makes what will be mounted.
func (m *Manager) directories(ctx context.Context, s Spec, rec *record) error {
	if err := m.sessionDirs(*rec); err != nil {
		return err
	}
	dir := m.dir(rec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the sandbox's directory: %w", err)
	}
	// The container's root may be "other" here; a 0700 parent guards it.
	if err := mkdirMode(filepath.Join(dir, "run"), 0o711); err != nil {
		return err
	}
	if err := mkdirMode(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := mkdirMode(filepath.Join(dir, trustName), 0o755); err != nil {
		return err
	}
	return m.files(ctx, s, rec)
}

// files writes the sandbox's record and what of its files is the server's.
func (m *Manager) files(ctx context.Context, s Spec, rec *record) error {
	if err := m.bind(ctx, s, rec); err != nil {
		return err
	}
	config, err := json.Marshal(shim.Config{
		Sandbox: rec.ID, Token: rec.Token, OrphanTimeoutMS: m.cfg.OrphanTimeout.Milliseconds(),
		SpoolLimitBytes: spoolBytes, LineLimitBytes: lineBytes, ForwardAddr: forwardAddr, Unfiltered: m.cfg.Off.SyscallFilter,
	})
	if err != nil {
		return err
	}
	if err := m.writeRecord(*rec); err != nil {
		return err
	}
	files := map[string][]byte{
		"run/config.json": config,
		"passwd":          []byte(passwdFor(s.Checked.facts.Passwd, rec.UID, rec.GID, HomePath)),
		"group":           []byte(groupFor(s.Checked.facts.Group, rec.GID)),
		"hosts":           []byte(hostsText),
		"resolv.conf":     []byte(resolvText),
	}
	if len(m.cfg.Zoneinfo) > 0 {
		files["zoneinfo"] = m.cfg.Zoneinfo
	}
	const mode = 0o644
	for name, content := range files {
		path := filepath.Join(m.dir(rec.ID), name)
		if err := os.WriteFile(path, content, mode); err != nil {
			return fmt.Errorf("writing the sandbox's %s: %w", name, err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask is
			return fmt.Errorf("writing the sandbox's %s: %w", name, err)
		}
	}
	return nil
}

// sessionDirs makes the session's directories, or gives them to the agent.
func (m *Manager) sessionDirs(rec record) error {
	uid, gid := rec.UID, rec.GID
	if m.cfg.Info.Rootless {
		uid, gid = -1, -1
	}
	for _, name := range []string{"home", "workspace"} {
		if err := sessionDir(m.ownPath(rec, name), uid, gid); err != nil {
			return err
		}
	}
	return nil
}

func mkdirMode(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the sandbox's directory: %w", err)
	}
	return os.Chmod(dir, mode)
}
