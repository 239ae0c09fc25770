package egress

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ensure returns the status of a process that answers, started if need be.
func (s *Supervisor) ensure(ctx context.Context) (Status, error) {
	s.reap()
	if st, err := s.client.Status(ctx); err == nil && !s.outdated(st) {
		return st, nil
	}
	if len(s.cfg.Command) == 0 {
		return Status{}, s.others(ctx)
	}
	lock, err := lockFile(ctx, filepath.Join(s.cfg.Dir, startLock), startLimit)
	if err != nil {
		return Status{}, fmt.Errorf("egress: somebody else is starting it: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if st, err := s.client.Status(ctx); err == nil {
		if !s.outdated(st) {
			return st, nil
		}
		s.cfg.Log.Info("egress: replacing a process of another build", "pid", st.PID, "build", st.Build)
		if err := s.client.Shutdown(ctx); err != nil {
			return Status{}, err
		}
	}
	if err := s.start(); err != nil {
		return Status{}, err
	}
	return s.waitStarted(ctx)
}

// others asks for a process that somebody else starts: one of another build
// drains and is started anew by whoever keeps it.
func (s *Supervisor) others(ctx context.Context) error {
	st, err := s.client.Status(ctx)
	if err != nil {
		return fmt.Errorf("egress: no process serves %s, and another service should start it (`stromboli egress --stay --dir %s`): %w", s.cfg.Dir, s.cfg.Dir, err)
	}
	s.cfg.Log.Info("egress: asking a process of another build to end", "pid", st.PID, "build", st.Build)
	return errors.Join(fmt.Errorf("egress: pid %d is of another build (%s): start that of this one", st.PID, st.Build), s.client.Shutdown(ctx))
}

func (s *Supervisor) outdated(st Status) bool {
	return st.Protocol != protocol || (s.cfg.Build != "" && st.Build != s.cfg.Build)
}

// start runs the command in a session of its own, its output in a file: no
// signal to the server's group and no broken pipe may end it.
func (s *Supervisor) start() error {
	path := filepath.Join(s.cfg.Dir, logFile)
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	out, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return fmt.Errorf("egress: log: %w", err)
	}
	defer func() { _ = out.Close() }()
	program, err := exec.LookPath(s.cfg.Command[0])
	if err == nil {
		program, err = filepath.Abs(program) // it is started in another directory
	}
	if err != nil {
		return fmt.Errorf("egress: start: %w", err)
	}
	cmd := exec.Command(program, s.cfg.Command[1:]...) //nolint:noctx // the caller's command, which outlives every context here
	cmd.Dir = s.cfg.Dir
	cmd.Env = s.cfg.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would pass the server's on
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("egress: start: %w", err)
	}
	s.child = cmd.Process.Pid
	_ = cmd.Process.Release() // reaped by pid, so that no goroutine need wait for it
	return nil
}

func (s *Supervisor) waitStarted(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit+replaceWait)
	defer cancel()
	for {
		st, err := s.client.Status(ctx)
		if err == nil && !s.outdated(st) {
			return st, nil
		}
		if status, ended := s.reap(); ended {
			return Status{}, fmt.Errorf("egress: it ended at once (status %d): see %s", status, filepath.Join(s.cfg.Dir, logFile))
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return Status{}, fmt.Errorf("egress: it did not answer after its start: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// reap collects the child if it has ended.
func (s *Supervisor) reap() (status int, ended bool) {
	if s.child == 0 {
		return 0, false
	}
	var ws unix.WaitStatus
	pid, err := unix.Wait4(s.child, &ws, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) || (err == nil && pid == 0) {
		return 0, false
	}
	s.child = 0
	return int(ws), true
}
