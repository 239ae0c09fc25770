package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// record is what a later server must know of a sandbox; it lies in the
// sandbox's directory.
type record struct {
	ID          string
	RunID       string
	SessionID   string
	Ephemeral   bool // the session's directories lie in the sandbox's
	Token       string
	Image       string
	ImageDigest string
	UID, GID    int // the agent's, in the sandbox; on the disk its files are theirs
	Workdir     string
	Home        string // in the sandbox
	ImageEnv    []string
	CLI         string // in the sandbox
	ProxyURL    string
	CreatedAt   time.Time
	Warnings    []stromboli.Warning
	// UserNS is how the sandbox's ids relate to the host's, and UserNSWhy why it
	// isn't UserNSAuto. IDBase is the host's id of the sandbox's root, 0 where
	// the engine decides (rootless) or they are the same.
	UserNS, UserNSWhy string
	IDBase            uint32
	// RootHooks: the sandbox's root has what hooks need that install packages.
	RootHooks bool
	// RootDir is the host's directory with what was changed in a writable root;
	// empty where there is none, or the engine doesn't tell.
	RootDir string
	// Made is what the container was made from, save what is one run's; a kept
	// sandbox serves no run that asks for something else.
	Made engine.ContainerSpec
	// Resumed: the sandbox was kept from the session's run before. What is done
	// once in a sandbox is done.
	Resumed bool
	// BootID names the shim that the server first spoke with, before it had
	// this run's agent started. Another one means that others restarted the
	// container.
	BootID string
	// Identity is what connections to bound hosts are opened with; empty where
	// nothing is bound.
	Identity Identity
}

// recordName is the record's file in the sandbox's directory.
const recordName = "sandbox.json"

func (m *Manager) record(s Spec, checked Plan) record {
	uid, gid := checked.UID, checked.GID
	if checked.ownSession && s.SessionUID > 0 {
		uid, gid = s.SessionUID, s.SessionGID
	}
	return record{
		ID: s.ID, RunID: s.RunID, SessionID: s.SessionID, Ephemeral: s.Ephemeral, Token: stromboli.NewToken(),
		Image: checked.Image, ImageDigest: checked.facts.Digest, UID: uid, GID: gid,
		Workdir: checked.Workdir, Home: HomePath, ImageEnv: checked.facts.Env,
		CLI: cliPath + "/claude", ProxyURL: "http://" + forwardAddr,
		CreatedAt: time.Now().UTC(), Warnings: checked.Warnings,
	}
}

// writeRecord keeps what a later server must know of a sandbox, in one step.
func (m *Manager) writeRecord(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	path := filepath.Join(m.dir(rec.ID), recordName)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("writing the sandbox's record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the sandbox's record: %w", err)
	}
	return nil
}

// readRecord reads what an earlier server knew of a sandbox. Without a record,
// which is shim.ErrGone, nobody can speak with it any more.
func (m *Manager) readRecord(id string) (record, error) {
	b, err := os.ReadFile(filepath.Join(m.dir(id), recordName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return record{}, err
	}
	var rec record
	if err != nil || json.Unmarshal(b, &rec) != nil {
		return record{}, fmt.Errorf("no record: %w", shim.ErrGone)
	}
	return rec, nil
}
