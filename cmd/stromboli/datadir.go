package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDataDir keeps the sockets below it within the kernel's 107 bytes.
const maxDataDir = 107 - len("/sb/0123456789abcdef/run/server.sock.0123456789")

// databaseFile is the database's name there.
const databaseFile = "stromboli.db"

// dataDir is the server's directory, held by one server at a time.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory with mode 0700 and takes its lock.
func openDataDir(path string) (*dataDir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory (STROMBOLI_DATA_DIR): %w", err)
	}
	// Symlinks in the path would differ from what the engine mounts.
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("data directory (STROMBOLI_DATA_DIR): %w", err)
	}
	if len(path) > maxDataDir {
		return nil, fmt.Errorf("data directory %s: its path is longer than %d bytes, too long for the sockets below it: choose a shorter STROMBOLI_DATA_DIR", path, maxDataDir)
	}
	if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // a directory
		return nil, fmt.Errorf("data directory %s must belong to the user who runs the server: %w", path, err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errInUse{path: path, address: readAddress(path)}
		}
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(path, restoring)); err == nil {
		_ = lock.Close()
		return nil, fmt.Errorf("data directory %s: a restore into it was cut short: remove what is in it and restore again", path)
	}
	return &dataDir{path: path, lock: lock}, nil
}

// restoring is the name of a file that is there while a restore goes on.
const restoring = "restoring"

// places makes the directories that are mounted into sandboxes and resolves
// what leads to them: the engine would see other paths than the server.
func (s *server) places() error {
	s.cfg.DataDir = s.dir.path
	if s.cfg.Agent.SessionsDir != "" {
		if err := os.MkdirAll(s.cfg.Agent.SessionsDir, 0o700); err != nil {
			return fmt.Errorf("sessions directory (STROMBOLI_AGENT_SESSIONS_DIR): %w", err)
		}
		path, err := filepath.EvalSymlinks(s.cfg.Agent.SessionsDir)
		if err != nil {
			return fmt.Errorf("sessions directory (STROMBOLI_AGENT_SESSIONS_DIR): %w", err)
		}
		s.cfg.Agent.SessionsDir = path
	}
	shared := s.cfg.SharedDir()
	if len(shared) > maxDataDir {
		return fmt.Errorf("%s: its path is longer than %d bytes, too long for the sockets below it: choose a shorter STROMBOLI_AGENT_SESSIONS_DIR", shared, maxDataDir)
	}
	if err := os.MkdirAll(shared, 0o700); err != nil {
		return fmt.Errorf("making the directory of what sandboxes mount: %w", err)
	}
	// A restart must find it closed, whoever made it.
	if err := os.Chmod(shared, 0o700); err != nil { //nolint:gosec // a directory
		return fmt.Errorf("making the directory of what sandboxes mount: %w", err)
	}
	return nil
}

// errInUse tells that another server holds the data directory.
type errInUse struct{ path, address string }

func (e errInUse) Error() string {
	at := ""
	if e.address != "" {
		at = " at " + e.address
	}
	return fmt.Sprintf("another stromboli server%s uses the data directory %s: stop it, or give this one its own by STROMBOLI_DATA_DIR", at, e.path)
}

// close gives the lock back. Nobody answers at the address any more.
func (d *dataDir) close() error {
	_ = os.Remove(filepath.Join(d.path, "address"))
	return d.lock.Close()
}

// writeAddress records where the server listens, for `stromboli run`.
func (d *dataDir) writeAddress(url string) error {
	return os.WriteFile(filepath.Join(d.path, "address"), []byte(url+"\n"), 0o600)
}

func readAddress(path string) string {
	b, err := os.ReadFile(filepath.Join(path, "address"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
