package shim

import (
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// judge runs a filter as the kernel does.
func judge(t *testing.T, prog []unix.SockFilter, arch, nr uint32, args [2]uint32) uint32 {
	t.Helper()
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		taken := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = map[uint32]uint32{dataNr: nr, dataArch: arch, dataArg0: args[0], dataArg1: args[1]}[in.K]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			taken = acc == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken = acc >= in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			taken = acc&in.K != 0
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
		if taken {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

func TestFilter(t *testing.T) {
	archs := architectures()
	prog := filter(archs)
	if len(prog) > unix.BPF_MAXINSNS {
		t.Fatalf("%d instructions", len(prog))
	}
	const pass = uint32(unix.SECCOMP_RET_ALLOW)
	check := func(what string, arch uint32, nr int32, arg0, want uint32) {
		t.Helper()
		if want != pass {
			want |= unix.SECCOMP_RET_ERRNO
		}
		if got := judge(t, prog, arch, uint32(nr), [2]uint32{arg0, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}); got != want {
			t.Errorf("%s (arch %#x, call %d, argument %#x): %#x, want %#x", what, arch, nr, arg0, got, want)
		}
	}
	no := func(e syscall.Errno) uint32 { return uint32(e) }
	for _, a := range archs {
		for family, want := range map[uint32]uint32{
			unix.AF_UNIX: pass, unix.AF_INET: pass, unix.AF_INET6: pass, unix.AF_NETLINK: pass,
			unix.AF_VSOCK: no(unix.EAFNOSUPPORT), unix.AF_ALG: no(unix.EAFNOSUPPORT), unix.AF_PACKET: no(unix.EAFNOSUPPORT),
			unix.AF_BLUETOOTH: no(unix.EAFNOSUPPORT), unix.AF_TIPC: no(unix.EAFNOSUPPORT), 0: no(unix.EAFNOSUPPORT),
		} {
			check("socket", a.arch, a.socket, family, want)
			check("socketpair", a.arch, a.socketpair, family, want)
		}
		if a.socketcall >= 0 {
			check("socketcall socket", a.arch, a.socketcall, 1, no(unix.EAFNOSUPPORT))
			check("socketcall socketpair", a.arch, a.socketcall, 8, no(unix.EAFNOSUPPORT))
			check("socketcall connect", a.arch, a.socketcall, 3, pass)
		}
		for _, nr := range []int32{a.clone, a.unshare} {
			check("threads and forks", a.arch, nr, unix.CLONE_VM|unix.CLONE_THREAD|uint32(unix.SIGCHLD), pass)
			check("user namespace", a.arch, nr, unix.CLONE_NEWUSER, no(unix.EPERM))
			check("user namespace and more", a.arch, nr, unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_VM, no(unix.EPERM))
		}
		check("clone3", a.arch, sysClone3, 0, no(unix.ENOSYS))
		for _, nr := range refusedEverywhere() {
			check("refused everywhere", a.arch, int32(nr), 0, no(unix.ENOSYS))
		}
		for _, nr := range a.refused {
			check("refused", a.arch, int32(nr), 0, no(unix.EPERM))
		}
		for family, want := range map[uint32]uint32{unix.AF_INET: uint32(unix.SECCOMP_RET_ERRNO) | no(unix.EPERM), unix.AF_INET6: uint32(unix.SECCOMP_RET_ERRNO) | no(unix.EPERM), unix.AF_NETLINK: pass} {
			if got := judge(t, prog, a.arch, uint32(a.socket), [2]uint32{family, unix.SOCK_RAW | unix.SOCK_NONBLOCK}); got != want {
				t.Errorf("raw socket of family %d: %#x", family, got)
			}
		}
		check("another call", a.arch, 0, unix.AF_VSOCK, pass)
		if a.x32 {
			check("the x32 ABI", a.arch, x32Bit+a.socket, unix.AF_VSOCK, no(unix.ENOSYS))
		}
	}
	check("another architecture", 0x80000016, 1, 0, no(unix.ENOSYS))
	// The running machine's own numbers are those of the table.
	if archs[0].socket != unix.SYS_SOCKET || archs[0].clone != unix.SYS_CLONE || archs[0].unshare != unix.SYS_UNSHARE ||
		archs[0].socketpair != unix.SYS_SOCKETPAIR || sysClone3 != unix.SYS_CLONE3 {
		t.Errorf("numbers: %+v", archs[0])
	}
	if want := []uint32{
		unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_SETNS,
	}; !slices.Equal(archs[0].refused, want) {
		t.Errorf("refused: %v, want %v", archs[0].refused, want)
	}
	if want := []uint32{
		unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN,
		unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	}; !slices.Equal(refusedEverywhere(), want) {
		t.Errorf("refused everywhere: %v, want %v", refusedEverywhere(), want)
	}
}
