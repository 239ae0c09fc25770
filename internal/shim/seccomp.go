package shim

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The engine's own filter lets pass things that a sandbox must not have.
// Some address families know no network namespaces: by AF_VSOCK, above all, a
// process reaches the hypervisor and the host's own listeners whatever network
// its container has. And in a user namespace of its own a process has every
// capability there is, towards code of the kernel that rarely sees strangers.
// What else of the kernel has been the way out of many a sandbox, and is of no
// use to an agent, is refused whatever capabilities the engine's filter goes
// by. So the shim adds a filter of its own, for itself and all its children.
// ptrace stays: debuggers work among the agent's own processes.

// syscalls are the numbers of one architecture's calls; -1 where it has none.
type syscalls struct {
	arch                                           uint32
	socket, socketpair, socketcall, clone, unshare int32
	refused                                        []uint32
	x32                                            bool // numbers of another ABI begin at x32Bit
}

const (
	x32Bit    = 0x40000000
	sysClone3 = 435 // everywhere
)

// refusedEverywhere have one number everywhere: io_uring, which makes sockets
// without the call, and the newer ways to mount.
func refusedEverywhere() []uint32 {
	return []uint32{
		425, 426, 427, // io_uring_setup, _enter, _register
		428, 429, 430, 431, 432, 433, 442, // open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
	}
}

// architectures are those that a machine's kernel runs programs of. Refused are,
// in this order: bpf, perf_event_open, userfaultfd, keyctl, add_key,
// request_key, mount, umount2, pivot_root, setns.
func architectures() []syscalls {
	if runtime.GOARCH == "arm64" {
		return []syscalls{
			{arch: unix.AUDIT_ARCH_AARCH64, socket: 198, socketpair: 199, socketcall: -1, clone: 220, unshare: 97, refused: []uint32{280, 241, 282, 219, 217, 218, 40, 39, 41, 268}},
			{arch: unix.AUDIT_ARCH_ARM, socket: 281, socketpair: 288, socketcall: 102, clone: 120, unshare: 337, refused: []uint32{386, 364, 388, 311, 309, 310, 21, 52, 218, 375}},
		}
	}
	return []syscalls{
		{arch: unix.AUDIT_ARCH_X86_64, socket: 41, socketpair: 53, socketcall: -1, clone: 56, unshare: 272, refused: []uint32{321, 298, 323, 250, 248, 249, 165, 166, 155, 308}, x32: true},
		{arch: unix.AUDIT_ARCH_I386, socket: 359, socketpair: 360, socketcall: 102, clone: 120, unshare: 310, refused: []uint32{357, 336, 374, 288, 286, 287, 21, 52, 217, 346}},
	}
}

// families are what sockets may be of: those that a network namespace confines
// and that programs need.
func families() []uint32 { return []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} }

// Offsets in struct seccomp_data; both architectures are little-endian.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24

	sockTypeMask = 0xf // the rest of a socket's type are flags
)

// confine puts the filter on every thread of the process, for good.
func confine() error {
	runtime.LockOSThread() // the two calls belong to one thread
	defer runtime.UnlockOSThread()
	prog := filter(architectures())
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]} //nolint:gosec // a hundred instructions
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no-new-privileges: %w", err)
	}
	// The mitigation that older kernels tie to a filter is slow, and against a
	// threat that an agent's process is not exposed to: its own code.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
		uintptr(unsafe.Pointer(&fprog))) //nolint:gosec // how the kernel takes it
	runtime.KeepAlive(prog)
	if errno != 0 {
		return fmt.Errorf("install the system call filter: %w", errno)
	}
	if r != 0 {
		return errors.New("install the system call filter: a thread has another one")
	}
	return nil
}

// filter is the program: one block for each architecture, and nothing for any
// other.
func filter(archs []syscalls) []unix.SockFilter {
	var prog []unix.SockFilter
	for _, a := range archs {
		block := a.block()
		prog = append(prog, load(dataArch), jumpUnless(a.arch, len(block)))
		prog = append(prog, block...)
	}
	return append(prog, deny(unix.ENOSYS))
}

func (a syscalls) block() []unix.SockFilter {
	block := []unix.SockFilter{load(dataNr)}
	if a.x32 {
		block = append(block, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jf: 1}, deny(unix.ENOSYS))
	}
	// on runs part for one call; what part lets through goes on to allow.
	on := func(nr int32, part ...unix.SockFilter) {
		if nr < 0 {
			return
		}
		block = append(block, jumpUnless(uint32(nr), len(part)))
		block = append(block, part...)
	}
	cooked := []unix.SockFilter{ // of any type but raw
		load(dataArg1), {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: sockTypeMask}, jumpUnless(unix.SOCK_RAW, 1), deny(unix.EPERM), allow(),
	}
	known := []unix.SockFilter{load(dataArg0)}
	for _, f := range families() {
		part := []unix.SockFilter{allow()}
		if f == unix.AF_INET || f == unix.AF_INET6 {
			part = cooked
		}
		known = append(append(known, jumpUnless(f, len(part))), part...)
	}
	known = append(known, deny(unix.EAFNOSUPPORT))
	on(a.socket, known...)
	on(a.socketpair, known...)
	// Its arguments lie in memory, where they can't be judged. C libraries of
	// the last ten years don't make sockets this way.
	on(a.socketcall, load(dataArg0), jumpUnless(1, 1), deny(unix.EAFNOSUPPORT), jumpUnless(8, 1), deny(unix.EAFNOSUPPORT), allow())
	namespaces := []unix.SockFilter{
		load(dataArg0), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_NEWUSER, Jf: 1}, deny(unix.EPERM), allow(),
	}
	on(a.clone, namespaces...)
	on(a.unshare, namespaces...)
	on(sysClone3, deny(unix.ENOSYS)) // flags in memory; callers fall back to clone
	for _, nr := range refusedEverywhere() {
		on(int32(nr), deny(unix.ENOSYS)) //nolint:gosec // small; callers fall back
	}
	for _, nr := range a.refused {
		on(int32(nr), deny(unix.EPERM)) //nolint:gosec // small
	}
	return append(block, allow())
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// jumpUnless skips the next n instructions unless the value is k.
func jumpUnless(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: uint8(n)} //nolint:gosec // a block is far shorter than 256
}

func allow() unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
}

func deny(errno syscall.Errno) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)} //nolint:gosec // far below 2^16
}
