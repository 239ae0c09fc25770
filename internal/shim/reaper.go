package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper starts processes and waits for every child of PID 1, its own and the
// orphans that the kernel hands over.
type reaper struct {
	// mu is held while a process is started, signalled or reaped, so that a
	// process is known before it can be reaped and a pid is never signalled
	// after it was.
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
}

func newReaper() *reaper { return &reaper{children: map[int]chan syscall.WaitStatus{}} }

// run reaps for as long as the process lives; it returns when done is closed.
func (r *reaper) run(done <-chan struct{}) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	defer signal.Stop(c)
	for {
		r.reap()
		select {
		case <-c:
		case <-done:
			return
		}
	}
}

func (r *reaper) reap() {
	for {
		// Look first and reap under the lock: between the two the pid can't be
		// given to another process.
		pid, err := peekChild()
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
		r.mu.Lock()
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		if err == nil && got == pid {
			if c := r.children[pid]; c != nil {
				c <- ws // has room for it
				delete(r.children, pid)
			}
		}
		r.mu.Unlock()
	}
}

// peekChild returns the pid of a child that has ended, or 0.
func peekChild() (int, error) {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0, err
	}
	// si_pid follows three ints and, on 64-bit systems, their padding.
	b := (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info)) //nolint:gosec // the kernel's layout
	return int(binary.NativeEndian.Uint32(b[16:])), nil
}

// start starts a process without inheritable and ambient capabilities that can
// never gain any. A process that fails the check, if there is one, is killed.
// Its status comes once on the channel.
func (r *reaper) start(argv []string, attr *syscall.ProcAttr, check func(pid int) error) (int, <-chan syscall.WaitStatus, error) {
	// Capabilities and no-new-privileges belong to a thread, and a child gets
	// those of the thread that makes it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := shedInheritable(); err != nil {
		return 0, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.children[pid] = c
	if check != nil { // be it dead already, it is not reaped yet
		if err := check(pid); err != nil {
			return 0, nil, errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	return pid, c, nil
}

// signal sends sig to a process that start made, or with group to its process
// group, unless it has been reaped.
func (r *reaper) signal(pid int, sig syscall.Signal, group bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == nil {
		return nil
	}
	if group {
		pid = -pid
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	return nil
}

// warmThreads makes the runtime start n threads and keep them. An agent that
// has used up the sandbox's pids limit must not be able to take the process
// down by the next thread that can't be made.
func warmThreads(n int) {
	var ready, release sync.WaitGroup
	release.Add(1)
	ready.Add(n)
	var done sync.WaitGroup
	for range n {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			release.Wait()
		})
	}
	ready.Wait()
	release.Done()
	done.Wait()
}
