package shim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxHelpers bounds the helpers at work for the server at one time.
const maxHelpers = 8

// helpers starts helper processes.
type helpers struct {
	reaper *reaper
	slots  chan struct{}
	// gate is held for writing while everything of a uid is being killed:
	// no helper starts then, so the killing comes to an end.
	gate sync.RWMutex
}

func newHelpers(r *reaper) *helpers {
	return &helpers{reaper: r, slots: make(chan struct{}, maxHelpers)}
}

func (h *helpers) pause()  { h.gate.Lock() }
func (h *helpers) resume() { h.gate.Unlock() }

// helperProcess is one helper at work.
type helperProcess struct {
	reaper *reaper
	pid    int
	in     *os.File // the helper's stdin
	out    *os.File // the helper's stdout
	errOut *os.File
	done   <-chan syscall.WaitStatus
}

// start starts a helper for the server, unless there are too many.
func (h *helpers) start(o op, req fileRequest) (*helperProcess, error) {
	select {
	case h.slots <- struct{}{}:
	default:
		return nil, remotef(CodeBusy, "%d helpers are at work already", maxHelpers)
	}
	h.gate.RLock()
	defer h.gate.RUnlock()
	p, err := h.launch(o, req)
	if err != nil {
		<-h.slots
	}
	return p, err
}

// kill has a helper kill every process of uid, once. The gate is held.
func (h *helpers) kill(uid, gid int) error {
	p, err := h.launch(opKill, fileRequest{UID: uid, GID: gid})
	if err != nil {
		return err
	}
	return p.wait()
}

func (h *helpers) launch(o op, req fileRequest) (*helperProcess, error) {
	p := &helperProcess{reaper: h.reaper}
	var child [3]*os.File
	pipes := []struct {
		ours  **os.File
		write bool
	}{{&p.in, true}, {&p.out, false}, {&p.errOut, false}}
	var err error
	for i, pipe := range pipes {
		if *pipe.ours, child[i], err = halfPipe(pipe.write); err != nil {
			p.closePipes()
			closeFiles(child[:]...)
			return nil, err
		}
	}
	p.pid, p.done, err = h.reaper.start(helperArgs(o, req), &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(),
		Files: []uintptr{child[0].Fd(), child[1].Fd(), child[2].Fd()},
	}, nil)
	closeFiles(child[:]...)
	if err != nil {
		p.closePipes()
		return nil, err
	}
	if len(req.Targets) > 0 {
		b, _ := json.Marshal(req) // strings and numbers can't fail
		_, err := p.in.Write(b)   // an early end shows in its status
		_ = errors.Join(err, p.in.Close())
	}
	return p, nil
}

// chunk gives a write helper its next bytes; none are the end.
func (p *helperProcess) chunk(b []byte) error {
	h := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))) //nolint:gosec // bounded by a frame
	_, err := p.in.Write(append(h, b...))
	return err
}

// abort kills the helper; wait must still be called.
func (p *helperProcess) abort() { _ = p.reaper.signal(p.pid, syscall.SIGKILL, false) }

// wait returns when the helper has ended, with what it had to say.
func (p *helperProcess) wait() error {
	defer p.closePipes()
	said, _ := io.ReadAll(io.LimitReader(p.errOut, 4096))
	ws := <-p.done
	if ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	re := &RemoteError{}
	if json.Unmarshal(said, re) == nil && re.Code != "" {
		return re
	}
	if ws.Signaled() {
		return remotef(CodeInterrupted, "the helper was ended by %s", signalName(ws.Signal()))
	}
	return remotef(CodeFailed, "the helper exited with %d: %.200q", ws.ExitStatus(), said)
}

// release gives the slot back that start took.
func (h *helpers) release() { <-h.slots }

func (p *helperProcess) closePipes() { closeFiles(p.in, p.out, p.errOut) }

// halfPipe makes a pipe: our end, which the runtime polls, and the child's,
// which blocks as programs expect.
func halfPipe(write bool) (ours, child *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	mine, other := fds[0], fds[1]
	if write {
		mine, other = other, mine
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(mine), unix.Close(other))
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(other), "pipe"), nil
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // pipes have nothing to lose
		}
	}
}
