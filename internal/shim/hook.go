package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxHooks bounds what the shim remembers of hooks.
	maxHooks = 1000
	// hookLine and hookOutput bound one line and all output of a hook; the rest
	// is read, counted and dropped.
	hookLine   = 64 << 10
	hookOutput = 1 << 20
	// pipeMost is the most that a pipe can hold.
	pipeMost = 1 << 20
)

// Hook is a shell command to be run before the agent is started.
type Hook struct {
	// ID names this start; starting the same ID again changes nothing.
	ID      string   `json:"id"`
	Command string   `json:"command"`
	Env     []string `json:"env"`
	// Secrets are as a Process's.
	Secrets map[string]string `json:"secrets,omitempty"`

	Dir string `json:"dir"`
	UID int    `json:"uid"` // not 0
	GID int    `json:"gid"`
	// Root runs it as the sandbox's root, with whatever capabilities that has;
	// UID and GID are then the agent's all the same.
	Root bool `json:"root,omitempty"`
	// Deadline ends the hook with CauseDeadline, counted from now by the shim's
	// monotonic clock. It must be set.
	Deadline time.Duration `json:"deadline"`
}

// HookStarted is the data of a HookStart line.
type HookStarted struct {
	ID string `json:"id"`
}

// HookStatus is the data of a HookExit line: the hook's own process has ended.
type HookStatus struct {
	ID string `json:"id"`
	ExitStatus
	Duration time.Duration `json:"duration"`
	// Dropped counts the bytes of output beyond the bound.
	Dropped int64 `json:"dropped,omitempty"`
	// Error says why the hook's shell could not be started; see CauseNotStarted.
	Error string `json:"error,omitempty"`
}

// ParseHookStart reads the data of a HookStart line.
func ParseHookStart(data []byte) (HookStarted, error) {
	var s HookStarted
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("parse a hook's start: %w", err)
	}
	return s, nil
}

// ParseHookExit reads the data of a HookExit line.
func ParseHookExit(data []byte) (HookStatus, error) {
	var s HookStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("parse a hook's exit: %w", err)
	}
	return s, nil
}

// startHook starts a hook, once; there is one at a time, and none beside the
// agent.
func (a *agent) startHook(h Hook) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.hooks[h.ID]:
		return nil
	case a.pid != 0:
		return remotef(CodeConflict, "the agent was started already")
	case a.hook != "":
		return remotef(CodeConflict, "the hook %q is at work", a.hook)
	case a.stop != nil:
		return remotef(CodeConflict, "the sandbox was told to stop")
	case h.ID == "" || !filepath.IsAbs(h.Dir) || h.Deadline <= 0:
		return remotef(CodeInvalid, "a hook needs an id, an absolute directory and a deadline")
	case len(a.hooks) >= maxHooks:
		return remotef(CodeBusy, "%d hooks are too many", maxHooks)
	}
	if err := checkIDs(h.UID, h.GID); err != nil {
		return err
	}
	for _, s := range append([]string{h.Dir, h.Command}, h.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return remotef(CodeInvalid, "a NUL byte in the command or the environment")
		}
	}
	return a.launchHook(h)
}

// shell is the program that runs a hook's command.
func shell() string {
	for _, path := range []string{"/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return "/bin/sh"
}

// launchHook starts the process and what looks after it; mu is held.
func (a *agent) launchHook(h Hook) error {
	var ours, child [2]*os.File
	code := CodeFailed // before there is a line of it
	fail := func(err error) error {
		closeFiles(ours[:]...)
		closeFiles(child[:]...)
		return remotef(code, "start a shell in %s: %v", h.Dir, err)
	}
	env, err := withSecrets(h.Env, h.Secrets, a.in.secretsDir)
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return fail(err)
	}
	defer closeFiles(null)
	for i := range ours {
		if ours[i], child[i], err = halfPipe(false); err != nil {
			return fail(err)
		}
	}
	who := &syscall.Credential{Uid: uint32(h.UID), Gid: uint32(h.GID)} //nolint:gosec // checked
	check := func(pid int) error { return checkPowerless(pid, h.UID, h.GID) }
	if h.Root {
		who, check = &syscall.Credential{}, nil
	}
	begin := a.now()
	started, err := json.Marshal(HookStarted{ID: h.ID})
	if err != nil {
		return fail(err)
	}
	if _, err := a.in.spool.append(appendRecord(nil, begin, HookStart, started, 0), true); err != nil {
		return fail(err)
	}
	if a.hooks == nil {
		a.hooks = map[string]bool{}
	}
	a.hooks[h.ID] = true // its beginning is in the spool: whatever comes, so is its end
	oomBefore, _ := a.in.oom.read()
	restore := offerToOOMKiller()
	defer restore()
	pid, done, err := a.in.reaper.start([]string{shell(), "-c", h.Command}, &syscall.ProcAttr{
		Dir: h.Dir, Env: env, Files: []uintptr{null.Fd(), child[0].Fd(), child[1].Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: who},
	}, check)
	if err != nil {
		code = CodeStart
		err := fail(err)
		a.endHook(HookStatus{ID: h.ID, ExitStatus: ExitStatus{ExitCode: -1, Cause: CauseNotStarted}, Error: err.Error()})
		return err
	}
	closeFiles(child[:]...)
	a.hook = h.ID
	r := &hookRun{
		agentRun: agentRun{agent: a, pid: pid, done: done, oomBefore: oomBefore, proc: Process{UID: h.UID, GID: h.GID, Deadline: h.Deadline}},
		hook:     h, begin: begin,
	}
	r.end = r.killAll
	for i, stream := range []Stream{HookStdout, HookStderr} {
		p := &hookPipe{f: ours[i]}
		r.outputs = append(r.outputs, p)
		r.readers.Go(func() { r.copy(p, stream) })
	}
	go r.supervise()
	return nil
}

// endHook spools a hook's end.
func (a *agent) endHook(s HookStatus) {
	b, err := json.Marshal(s)
	if err == nil {
		_, err = a.in.spool.append(appendRecord(nil, a.now(), HookExit, b, 0), true)
	}
	if err != nil {
		a.in.complain(fmt.Errorf("spooling a hook's exit: %w", err))
	}
}

// hookRun is a hook from its start to its HookExit line.
type hookRun struct {
	agentRun
	hook    Hook
	begin   time.Time
	outputs []*hookPipe
	budget  budget
}

// supervise waits for the hook's own process. What that leaves running stays,
// unless the hook was ended: then nothing of it does.
func (r *hookRun) supervise() {
	a := r.agent
	ws := r.await()
	status := r.status(ws)
	if r.agent.stopOrder() != nil {
		r.end()
	}
	for _, p := range r.outputs {
		p.finish()
	}
	r.readers.Wait()
	a.endHook(HookStatus{ID: r.hook.ID, ExitStatus: status, Duration: a.now().Sub(r.begin), Dropped: r.budget.over()})
	a.mu.Lock()
	a.hook = ""
	a.mu.Unlock()
}

// killAll ends everything that hooks have started.
func (r *hookRun) killAll() {
	if r.hook.Root {
		_ = syscall.Kill(-1, syscall.SIGKILL) // all but us; ESRCH: nothing there
	}
	if !r.agent.in.killAll(r.hook.UID, r.hook.GID) {
		r.agent.in.complain(fmt.Errorf("processes of uid %d can't be killed", r.hook.UID))
	}
}

// copy spools one stream of the hook's until the hook has ended, and then reads
// on, for whoever the hook has left behind, without keeping anything.
func (r *hookRun) copy(p *hookPipe, stream Stream) {
	lr := &lineReader{
		src: p, stream: stream, limit: min(hookLine, r.agent.in.cfg.LineLimitBytes), now: r.agent.now,
		put: func(b []byte) error {
			if b = r.budget.take(b); len(b) == 0 {
				return nil
			}
			_, err := r.agent.in.spool.append(b, false)
			return err
		},
	}
	if err := lr.run(); err != nil && !errors.Is(err, errSpoolClosed) {
		r.agent.in.complain(fmt.Errorf("reading a hook's %s: %w", stream, err))
	}
	go p.discard()
}

// hookPipe is our end of a hook's stdout or stderr. It ends for its reader when
// the hook has ended, with everything that was written before, though others
// may have it open.
type hookPipe struct {
	f     *os.File
	rest  bool // the hook has ended: what is in the pipe is the end
	taken int  // of the rest
}

// finish says that the hook has ended.
func (p *hookPipe) finish() { _ = p.f.SetReadDeadline(time.Now()) }

// Read implements io.Reader.
func (p *hookPipe) Read(b []byte) (int, error) {
	if !p.rest {
		n, err := p.f.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		p.rest = true
		if err := p.f.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
	if p.taken >= pipeMost { // somebody goes on writing
		return 0, io.EOF
	}
	conn, err := p.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	rerr := conn.Read(func(fd uintptr) bool { // once, without waiting
		n, err = unix.Read(int(fd), b)
		return true
	})
	if rerr != nil || err != nil || n <= 0 {
		return 0, io.EOF
	}
	p.taken += n
	return n, nil
}

// discard reads until nobody has the pipe open any more, so that a service that
// a hook has left behind is neither held up nor ended by its own output.
func (p *hookPipe) discard() {
	if p.rest {
		_, _ = io.Copy(io.Discard, p.f)
	}
	closeFiles(p.f)
}
