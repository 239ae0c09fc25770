"""Prints, as name=value lines, what an agent's process sees of each hardening."""
import ctypes, errno, os, resource, stat

libc = ctypes.CDLL(None, use_errno=True)


def call(name, nr, *args):
    ctypes.set_errno(0)
    done = libc.syscall(nr, *args) >= 0
    print(f"{name}={'done' if done else errno.errorcode[ctypes.get_errno()]}")


personality, arm = (92, True) if os.uname().machine == "aarch64" else (135, False)
# Turning address randomization off is not in the engine's profile and harmless.
call("personality", personality, ctypes.c_ulong(0x0040000))
# Without a filter the kernel looks at the arguments, and finds none.
call("clone3", 435, None, ctypes.c_size_t(0))
for line in open("/proc/self/status"):
    if line.startswith(("Seccomp_filters:", "NoNewPrivs:", "CapEff:")):
        print("=".join(line.split()).replace(":", ""))
try:
    with open("/var/tmp/written", "w"):
        print("root=done")
except OSError as e:
    print("root=" + errno.errorcode[e.errno])
masked = [p for p in ("/proc/kcore", "/proc/keys", "/proc/timer_list") if os.path.exists(p)]
print("masked=" + str(all(stat.S_ISCHR(os.stat(p).st_mode) for p in masked) and len(masked) > 0))
for kind in ("ipc", "uts", "cgroup", "pid", "mnt", "net"):
    print(f"{kind}={os.readlink('/proc/self/ns/' + kind)}")
print("hostname=" + os.uname().nodename)
print(f"files={resource.getrlimit(resource.RLIMIT_NOFILE)[1]}")
shm = os.statvfs("/dev/shm")
print(f"shm={shm.f_blocks * shm.f_frsize}")
