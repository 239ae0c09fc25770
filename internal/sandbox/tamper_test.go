package sandbox

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const tamperedID = "0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"

// TestHomeAfterTampering: whatever the agent made of its home, the transcript
// can be put there again, and nothing outside is read or written.
func TestHomeAfterTampering(t *testing.T) {
	for name, tamper := range map[string]func(t *testing.T, home, outside string) error{
		"nothing": func(*testing.T, string, string) error { return nil },
		".claude is a link": func(_ *testing.T, home, outside string) error {
			return os.Symlink(outside, filepath.Join(home, ".claude"))
		},
		".claude is a file": func(_ *testing.T, home, _ string) error {
			return os.WriteFile(filepath.Join(home, ".claude"), nil, 0o600)
		},
		".claude is closed": func(_ *testing.T, home, _ string) error {
			return os.Mkdir(filepath.Join(home, ".claude"), 0)
		},
		"projects is a link": func(_ *testing.T, home, outside string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, ".claude"), 0o700), os.Symlink(outside, filepath.Join(home, projectsDir)))
		},
		"projects is a fifo": func(_ *testing.T, home, _ string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, ".claude"), 0o700), syscall.Mkfifo(filepath.Join(home, projectsDir), 0o600))
		},
		"the project is a link": func(_ *testing.T, home, outside string) error {
			return errors.Join(os.MkdirAll(filepath.Join(home, projectsDir), 0o700), os.Symlink(outside, filepath.Join(home, projectsDir, "-workspace")))
		},
		"our own project is a link": func(_ *testing.T, home, outside string) error {
			return errors.Join(os.MkdirAll(filepath.Join(home, projectsDir), 0o700), os.Symlink(outside, filepath.Join(home, projectsDir, "stromboli")))
		},
		"the transcript is a link": func(_ *testing.T, home, outside string) error {
			dir := filepath.Join(home, projectsDir, "-workspace")
			return errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, tamperedID+".jsonl")))
		},
		"the transcript is a fifo": func(_ *testing.T, home, _ string) error {
			dir := filepath.Join(home, projectsDir, "-workspace")
			return errors.Join(os.MkdirAll(dir, 0o700), syscall.Mkfifo(filepath.Join(dir, tamperedID+".jsonl"), 0o600))
		},
		"the transcript is a directory that is closed": func(_ *testing.T, home, _ string) error {
			dir := filepath.Join(home, projectsDir, "stromboli", tamperedID+".jsonl")
			return errors.Join(os.MkdirAll(filepath.Join(dir, "x"), 0o700), os.Chmod(dir, 0))
		},
		"the temporary file is a link": func(_ *testing.T, home, outside string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, ".claude"), 0o700),
				os.Symlink(filepath.Join(outside, "secret"), filepath.Join(home, ".claude", ".stromboli-transcript")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, outside := filepath.Join(t.TempDir(), "home"), t.TempDir()
			if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := tamper(t, dir, outside); err != nil {
				t.Fatal(err)
			}
			h := Home{dir: dir, uid: -1, gid: -1}
			if f, err := h.ReadTranscript(tamperedID); err == nil {
				_ = f.Close()
				t.Error("a transcript was read where there is none")
			}
			if err := h.Repair(tamperedID); err != nil {
				t.Fatal(err)
			}
			if f, err := h.ReadTranscript(tamperedID); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after the repair: %v, %v", f, err)
			}
			const text = `{"type":"user"}` + "\n"
			for range 2 { // an equal one is left alone
				if err := h.WriteTranscript(tamperedID, strings.NewReader(text)); err != nil {
					t.Fatal(err)
				}
			}
			f, err := h.ReadTranscript(tamperedID)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if got, err := io.ReadAll(f); err != nil || string(got) != text {
				t.Errorf("read %q, %v", got, err)
			}
			left, err := os.ReadDir(outside)
			secret, rerr := os.ReadFile(filepath.Join(outside, "secret"))
			if err := errors.Join(err, rerr); err != nil || len(left) != 1 || string(secret) != "secret" {
				t.Errorf("outside: %v, %q, %v", left, secret, err)
			}
		})
	}
}
