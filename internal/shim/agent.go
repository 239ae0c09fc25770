package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// termGrace is the time between SIGTERM and SIGKILL when the shim itself
	// decides to end the agent.
	termGrace = 2 * time.Second
	// drainPatience bounds the wait for the end of a pipe whose writers are
	// all killed; only a process that can't be killed makes it count.
	drainPatience = 5 * time.Second
)

// agent is the one process that this sandbox is there for.
type agent struct {
	in  *initProcess
	now func() time.Time

	mu     sync.Mutex
	proc   Process
	pid    int // 0: not started
	exited bool
	due    time.Time // the deadline; zero: none
	stdin  *stdinWriter
	stop   *stopPlan
	rearm  chan struct{} // one slot: stop has changed

	hooks map[string]bool // the ids of those that were started
	hook  string          // the one at work
}

// stopPlan is an order to end the agent; times are of the monotonic clock.
type stopPlan struct {
	term, kill time.Time
	cause      string
}

func newAgent(in *initProcess) *agent {
	return &agent{in: in, now: time.Now, rearm: make(chan struct{}, 1)}
}

// state says how far the agent has come.
func (a *agent) state() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := State{ProcessID: a.proc.ID, Exited: a.exited}
	if a.stdin != nil {
		s.LastStdin = a.stdin.lastDone()
	}
	if !a.exited && !a.due.IsZero() {
		s.Left = max(a.due.Sub(a.now()), 1)
	}
	return s
}

// start starts the agent, once. Starting the same ID again is success.
func (a *agent) start(p Process) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.pid != 0 && a.proc.ID == p.ID:
		return nil
	case a.pid != 0:
		return remotef(CodeConflict, "process %q was started already", a.proc.ID)
	case a.hook != "":
		return remotef(CodeConflict, "the hook %q is at work", a.hook)
	case a.stop != nil:
		return remotef(CodeConflict, "the sandbox was told to stop before the agent was started")
	case p.ID == "" || len(p.Argv) == 0 || !filepath.IsAbs(p.Argv[0]) || !filepath.IsAbs(p.Dir):
		return remotef(CodeInvalid, "a process needs an id, an absolute path to run and an absolute directory")
	}
	if err := checkIDs(p.UID, p.GID); err != nil {
		return err
	}
	for _, s := range append([]string{p.Dir}, append(p.Argv, p.Env...)...) {
		if strings.IndexByte(s, 0) >= 0 {
			return remotef(CodeInvalid, "a NUL byte in the arguments or the environment")
		}
	}
	return a.launch(p)
}

// launch starts the process and everything that looks after it.
func (a *agent) launch(p Process) error {
	var ours, child [3]*os.File
	fail := func(err error) error {
		closeFiles(ours[:]...)
		closeFiles(child[:]...)
		return remotef(CodeStart, "start %s in %s as %d:%d: %v", p.Argv[0], p.Dir, p.UID, p.GID, err)
	}
	env, err := withSecrets(p.Env, p.Secrets, a.in.secretsDir)
	if err != nil {
		return err
	}
	for i := range ours {
		if ours[i], child[i], err = halfPipe(i == 0); err != nil {
			return fail(err)
		}
	}
	oomBefore, _ := a.in.oom.read()
	restore := offerToOOMKiller()
	defer restore()
	pid, done, err := a.in.reaper.start(p.Argv, &syscall.ProcAttr{
		Dir: p.Dir, Env: env,
		Files: []uintptr{child[0].Fd(), child[1].Fd(), child[2].Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: uint32(p.UID), Gid: uint32(p.GID)}, //nolint:gosec // checked
		},
	}, func(pid int) error { return checkPowerless(pid, p.UID, p.GID) })
	if err != nil {
		return fail(err)
	}
	closeFiles(child[:]...)

	a.proc, a.pid = p, pid
	if p.Deadline > 0 {
		a.due = a.now().Add(p.Deadline)
	}
	a.stdin = newStdinWriter(ours[0], a.in.spool)
	go a.stdin.run()
	r := &agentRun{agent: a, pid: pid, done: done, proc: p, oomBefore: oomBefore}
	r.end = func() { a.in.killAll(p.UID, p.GID) }
	for i, stream := range []Stream{Stdout, Stderr} {
		f := ours[i+1]
		r.pipes = append(r.pipes, f)
		lr := &lineReader{
			src: drainReader{f, &r.draining}, stream: stream, limit: a.in.cfg.LineLimitBytes, now: a.now,
			put: func(b []byte) error { _, err := a.in.spool.append(b, false); return err },
		}
		r.readers.Go(func() { r.read(lr, f) })
	}
	go r.supervise()
	return nil
}

// requestStop arms the agent's end, or tightens an earlier order; the first
// cause stays. Before a start it forbids the start.
func (a *agent) requestStop(req StopRequest) {
	now := a.now()
	plan := stopPlan{
		term: now.Add(max(req.TermAfter, 0)), kill: now.Add(max(req.KillAfter, 0)), cause: req.Cause,
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.stop; old != nil {
		if old.cause != "" {
			plan.cause = old.cause
		}
		if old.term.Before(plan.term) {
			plan.term = old.term
		}
		if old.kill.Before(plan.kill) {
			plan.kill = old.kill
		}
	}
	a.stop = &plan
	select {
	case a.rearm <- struct{}{}:
	default:
	}
}

// endIfRunning ends an agent or a hook that runs, for a cause of the shim's own.
func (a *agent) endIfRunning(cause string) {
	a.mu.Lock()
	running := a.pid != 0 && !a.exited || a.hook != ""
	a.mu.Unlock()
	if running {
		a.requestStop(StopRequest{KillAfter: termGrace, Cause: cause})
	}
}

func (a *agent) stopOrder() *stopPlan {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stop
}

// input returns the writer of the agent's stdin.
func (a *agent) input() (*stdinWriter, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stdin == nil {
		return nil, remotef(CodeNotStarted, "the agent was not started")
	}
	return a.stdin, nil
}

// agentRun is the agent from its start to its Exit line.
type agentRun struct {
	agent     *agent
	pid       int
	proc      Process
	done      <-chan syscall.WaitStatus
	oomBefore int64
	pipes     []*os.File
	readers   sync.WaitGroup
	draining  atomic.Bool
	killed    bool
	end       func() // kills everything of the run's
}

func (r *agentRun) read(lr *lineReader, f *os.File) {
	err := lr.run()
	if err != nil && !errors.Is(err, errSpoolClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
		r.agent.in.complain(fmt.Errorf("reading the agent's %s: %w", lr.stream, err))
	}
	closeFiles(f)
}

// supervise sees to the deadline and to orders to stop, and after the agent's
// end, whatever it came from, leaves nothing of its uid running, reads what
// was written, and spools the Exit line.
func (r *agentRun) supervise() {
	ws := r.await()
	in := r.agent.in
	if !in.killAll(r.proc.UID, r.proc.GID) {
		in.complain(fmt.Errorf("processes of uid %d can't be killed", r.proc.UID))
	}
	r.draining.Store(true)
	for _, f := range r.pipes {
		_ = f.SetReadDeadline(time.Now().Add(drainPatience)) // closed at its end already: fine
	}
	r.readers.Wait()
	r.agent.stdin.abandon()

	b, err := json.Marshal(r.status(ws))
	if err == nil {
		_, err = in.spool.append(appendRecord(nil, r.agent.now(), Exit, b, 0), true)
	}
	if err != nil {
		in.complain(fmt.Errorf("spooling the exit: %w", err))
	}
	r.agent.mu.Lock()
	r.agent.exited = true
	r.agent.mu.Unlock()
}

// await returns the status of the agent's main process.
func (r *agentRun) await() syscall.WaitStatus {
	var deadline <-chan time.Time
	if r.proc.Deadline > 0 {
		t := time.NewTimer(r.proc.Deadline)
		defer t.Stop()
		deadline = t.C
	}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	termed := false
	for {
		select {
		case ws := <-r.done:
			return ws
		case <-deadline:
			r.agent.requestStop(StopRequest{KillAfter: termGrace, Cause: CauseDeadline})
			continue
		case <-r.agent.rearm:
		case <-timer.C:
		}
		plan := r.agent.stopOrder()
		now := r.agent.now()
		if !termed && !now.Before(plan.term) {
			termed = true
			if err := r.agent.in.reaper.signal(r.pid, syscall.SIGTERM, true); err != nil {
				r.agent.in.complain(err)
			}
		}
		if !now.Before(plan.kill) {
			r.killed = true
			r.end()
			timer.Reset(time.Second) // again, should something have been left
			continue
		}
		next := plan.kill
		if !termed && plan.term.Before(next) {
			next = plan.term
		}
		timer.Reset(next.Sub(now))
	}
}

func (r *agentRun) status(ws syscall.WaitStatus) ExitStatus {
	s := ExitStatus{ExitCode: ws.ExitStatus()}
	if ws.Signaled() {
		s.ExitCode = 128 + int(ws.Signal())
		s.Signal = signalName(ws.Signal())
	}
	if plan := r.agent.stopOrder(); plan != nil {
		s.Cause = plan.cause
	}
	// A killed child of the agent raises the count too; it is the agent's own
	// end only if SIGKILL ended it and that was not us.
	after, ok := r.agent.in.oom.read()
	s.OOM = ok && after > r.oomBefore && !r.killed && s.ExitCode == 128+int(syscall.SIGKILL)
	return s
}

// drainReader gives up on a pipe that stays silent, once everything that could
// write to it should be dead. The time counts per read, so a full spool, which
// keeps us from reading, costs nothing.
type drainReader struct {
	f        *os.File
	draining *atomic.Bool
}

func (d drainReader) Read(b []byte) (int, error) {
	if d.draining.Load() {
		_ = d.f.SetReadDeadline(time.Now().Add(drainPatience))
	}
	n, err := d.f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF // what there is has been read
	}
	return n, err
}
