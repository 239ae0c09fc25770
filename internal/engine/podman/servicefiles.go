package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile takes an exclusive lock on a file, made when needed, and gives the
// function that releases it. The lock goes with the process.
func lockFile(ctx context.Context, path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// forgetLastBoot empties the run directory when the machine was booted since
// the last start. Podman takes its files there for a sign that the containers
// still run, and expects them on a file system that a reboot empties.
func (s *service) forgetLastBoot() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	mark := filepath.Join(s.dir, "boot_id")
	last, err := os.ReadFile(mark)
	if err == nil && bytes.Equal(last, boot) {
		return nil
	}
	entries, err := os.ReadDir(s.places.run)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(s.places.run, e.Name())); err != nil {
			return err
		}
	}
	return os.WriteFile(mark, boot, 0o600)
}

// openLog opens the service's log for appending.
func (s *service) openLog() (*os.File, error) {
	flags := os.O_CREATE | os.O_RDWR | os.O_APPEND
	if fi, err := os.Stat(s.logPath); err == nil && fi.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(s.logPath, flags, 0o600)
}

// logTail is what the service wrote since the position from, for an error.
func (s *service) logTail(from int64) string {
	f, err := os.Open(s.logPath)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.NewSectionReader(f, from, 4096))
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		text = "it wrote nothing to " + s.logPath
	}
	if hint := hintFor(text); hint != "" {
		text += " (" + hint + ")"
	}
	return text
}
