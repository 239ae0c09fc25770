# Tries, as the agent, what an agent must not be able to do. Prints one JSON
# object: facts, and for each attempt how it ended.
import ctypes, errno, glob, json, mmap, os, pwd, resource, signal, socket, stat, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)
facts, attempts = {}, {}


def status(pid):
    with open(f"/proc/{pid}/status") as f:
        return {k: v.strip() for k, v in (line.rstrip("\n").split(":", 1) for line in f)}


def attempt(name, call):
    try:
        attempts[name] = "done: %.100r" % (call(),)
    except OSError as e:
        attempts[name] = errno.errorcode.get(e.errno, str(e.errno))
    except Exception as e:
        attempts[name] = type(e).__name__


def c(name, *args):
    def call():
        ctypes.set_errno(0)
        if getattr(libc, name)(*args) == -1:
            raise OSError(ctypes.get_errno(), name)
        return 0
    return call


def connect(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)


def read(path):
    with open(path, "rb") as f:
        return f.read(16)


def write(path):
    with open(path, "w") as f:
        f.write("x")


def setuid():
    """Who a setuid root program of the image is: su waits for a password."""
    st = os.stat("/usr/bin/su")
    with subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
        prompt = p.stdout.read(1)
        now = status(p.pid)
        facts["setuid image"] = [bool(st.st_mode & stat.S_ISUID), st.st_uid, prompt.decode(), now["Uid"].split()[1], now["CapEff"]]
        p.kill()


NEWNS, NEWUSER, NEWPID, NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000


def inside(call, *flags):
    """Calls in a child that first tries to get namespaces of its own."""
    def child():
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            end = b"done"
            try:
                for flag in flags:
                    c("unshare", flag)()
                call()
            except OSError as e:
                end = errno.errorcode.get(e.errno, "?").encode()
            except BaseException as e:
                end = type(e).__name__.encode()
            os.write(w, end)
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(w)
        end = os.read(r, 100).decode()
        if end != "done":
            raise OSError(getattr(errno, end, 0), end)
    return child


# In a container without our defences the same attempts succeed.
if sys.argv[1] == "control":
    setuid()
    attempt("a user namespace", inside(lambda: 0, NEWUSER))
    attempt("socket AF_VSOCK", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
    attempt("signal the init", lambda: os.kill(1, 0))
    attempt("read /proc/1/environ", lambda: read("/proc/1/environ"))
    attempt("write /run/lock/x", lambda: write("/run/lock/x"))
    facts["devices"] = os.listdir("/sys/class/net")
    print(json.dumps({"facts": facts, "attempts": attempts}))
    sys.exit()

me = status("self")
facts["status"] = {k: me[k] for k in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd", "NoNewPrivs", "Seccomp")}
facts["uids"] = sorted({status(p)["Uid"].split()[0] for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1,)})
facts["devices"] = sorted(os.listdir("/sys/class/net"))
facts["routes"] = len(open("/proc/net/route").readlines()) - 1
facts["root_read_only"] = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
facts["passwd"] = list(pwd.getpwuid(os.getuid()))[0:1] + [pwd.getpwuid(os.getuid()).pw_dir]
facts["hosts"] = open("/etc/hosts").read()
facts["resolv"] = open("/etc/resolv.conf").read()
facts["hostname"] = socket.gethostname()
facts["init"] = open("/proc/1/cmdline").read()

# The server's place.
attempt("enter /run/stromboli", lambda: os.chdir("/run/stromboli"))
attempt("list /run/stromboli", lambda: os.listdir("/run/stromboli"))
for name in ("host", "host/config.json", "host/server.sock", "host/egress.sock", "shim", "spool"):
    attempt("stat /run/stromboli/" + name, lambda: os.stat("/run/stromboli/" + name))
attempt("read the token", lambda: read("/run/stromboli/host/config.json"))
attempt("connect to the server", lambda: connect("/run/stromboli/host/server.sock"))
attempt("connect to egress", lambda: connect("/run/stromboli/host/egress.sock"))
for name in ("root", "cwd"):
    attempt(f"by /proc/1/{name}", lambda: os.listdir(f"/proc/1/{name}/run/stromboli"))
attempt("by the shim's descriptors", lambda: os.listdir("/proc/1/fd"))

# The init.
attempt("signal the init", lambda: os.kill(1, 0))
attempt("kill the init", lambda: os.kill(1, signal.SIGKILL))
attempt("ptrace the init", c("ptrace", 16, 1, 0, 0))
for name in ("environ", "mem", "maps", "auxv", "stack", "syscall"):
    attempt(f"read /proc/1/{name}", lambda: read(f"/proc/1/{name}"))
attempt("the init's exe", lambda: os.readlink("/proc/1/exe"))

def libc_pidfd():
    pidfd = os.pidfd_open(1)
    fd = libc.syscall(438, pidfd, 0, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return fd


attempt("pidfd of the init's descriptor", libc_pidfd)

# Debuggers work among the agent's own processes.
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
facts["ptrace own"] = libc.ptrace(16, child, 0, 0)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)

# Privileges.
attempt("setuid 0", lambda: os.setuid(0))
attempt("setgid 0", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("chroot", lambda: os.chroot("/tmp"))
attempt("mount", c("mount", b"none", b"/tmp", b"tmpfs", 0, None))
attempt("remount the root", c("mount", b"none", b"/", None, 32 | 4096, None))
attempt("umount", c("umount2", b"/etc/passwd", 2))


for name, flag in {"mount": NEWNS, "net": NEWNET, "pid": NEWPID}.items():
    attempt(f"a {name} namespace", inside(lambda: 0, flag))
attempt("a user namespace", inside(lambda: 0, NEWUSER))
attempt("a user namespace and a mount one", inside(lambda: 0, NEWUSER | NEWNS))
attempt("a child in a user namespace", lambda: c("syscall", 56 if os.uname().machine == "x86_64" else 220, NEWUSER | signal.SIGCHLD, None, None, None, None)() or os._exit(9))
attempt("io_uring", c("syscall", 425, 1, None))
for family in ("AF_VSOCK", "AF_ALG", "AF_BLUETOOTH", "AF_TIPC"):
    attempt("socket " + family, lambda: socket.socket(getattr(socket, family), socket.SOCK_SEQPACKET if family in ("AF_ALG", "AF_TIPC") else socket.SOCK_STREAM))
attempt("block device", lambda: os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0)))
attempt("memory device", lambda: os.mknod("/tmp/mem", 0o600 | stat.S_IFCHR, os.makedev(1, 1)))
attempt("core pattern", lambda: write("/proc/sys/kernel/core_pattern"))
attempt("sysrq", lambda: write("/proc/sysrq-trigger"))
attempt("kernel log", c("syslog", 3, None, 0) if not hasattr(libc, "klogctl") else c("klogctl", 10, None, 0))
attempt("keyring", c("syscall", 248, b"user", b"x", b"y", 1, -3))
attempt("bpf", c("syscall", 321, 0, None, 0))
attempt("perf", c("syscall", 298, None, 0, -1, -1, 0))
if os.uname().machine == "x86_64":
    attempt("userfaultfd", c("syscall", 323, 0))
    attempt("join a namespace", c("syscall", 308, os.open("/proc/self/ns/uts", os.O_RDONLY), 0))
attempt("open a tree", c("syscall", 428, -100, b"/tmp", 1))
attempt("open a file system", c("syscall", 430, b"tmpfs", 0))
attempt("a mount's attributes", c("syscall", 442, -100, b"/tmp", 0, None, 0))
attempt("cgroup limit", lambda: [write(p) for p in glob.glob("/sys/fs/cgroup/memory*/memory.limit_in_bytes") + glob.glob("/sys/fs/cgroup/memory.max") + glob.glob("/sys/fs/cgroup/cgroup.procs")] or os.mkdir("/sys/fs/cgroup/x"))
attempt("lower a nice value", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
for path in ("/x", "/etc/x", "/usr/local/bin/x", "/opt/stromboli/cli/x", "/run/x", "/run/lock/x", "/probe/x", "/etc/passwd", "/etc/hosts", "/dev/x"):
    attempt("write " + path, lambda: write(path))

# A setuid root program, in the image and in a volume.
setuid()
st = os.stat("/probe/suid")
facts["setuid volume"] = [bool(st.st_mode & stat.S_ISUID), st.st_uid]
facts["setuid run"] = subprocess.run(["/probe/suid", "-p", "-c", "echo $EUID"], capture_output=True, text=True).stdout.strip()

# The network.
for name, family, address in (
    ("public", socket.AF_INET, ("1.1.1.1", 443)), ("link local", socket.AF_INET, ("169.254.169.254", 80)),
    ("public v6", socket.AF_INET6, ("2606:4700:4700::1111", 443)),
):
    attempt("connect " + name, lambda: socket.socket(family).connect(address))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
attempt("resolve", lambda: socket.getaddrinfo("example.com", 443))

# No engine, no secret.
sockets = []
for top in ("/run", "/var", "/etc", "/opt", "/home", "/workspace", "/srv", "/mnt"):
    for d, _, files in os.walk(top):
        sockets += [os.path.join(d, f) for f in files if stat.S_ISSOCK(os.lstat(os.path.join(d, f)).st_mode)]
facts["sockets"] = sockets
key, found = ("sk-ant-c4nary" + "S3cret-key").encode(), []
facts["environs"] = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as f:
                data = f.read()
            facts["environs"] += name == "environ"
            if key in data:
                found.append(f"/proc/{pid}/{name}")
        except OSError:
            pass
for top in ("/run", "/var", "/etc", "/home", "/workspace", "/tmp", "/root", "/dev/shm"):
    for d, _, files in os.walk(top):
        for f in files:
            path = os.path.join(d, f)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode) and key in open(path, "rb").read():
                    found.append(path)
            except OSError:
                pass
found += [f for f in ("/proc/self/mountinfo", "/proc/cmdline") if key in open(f, "rb").read()]
facts["secrets"] = found
facts["key variables"] = sorted(k for k in os.environ if k.startswith("ANTHROPIC_") or "TOKEN" in k and k != "CLAUDE_CODE_MESSAGING_TOKEN")
facts["api key"] = os.environ.get("ANTHROPIC_API_KEY", "")

# Limits, last.
def spawn():
    pids = []
    try:
        while len(pids) < 1500:
            pids.append(os.posix_spawn("/usr/bin/sleep", ["sleep", "60"], {}))
    except OSError as e:
        facts["processes ended by"] = errno.errorcode[e.errno]
    facts["processes"] = len(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


spawn()
facts["shm"] = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
if sys.argv[1] == "limits":
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        write_mb = 0
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("1000")
        held = []
        while write_mb < 2048:
            m = mmap.mmap(-1, 16 << 20)
            for i in range(0, 16 << 20, 4096):
                m[i] = 1
            held.append(m)
            write_mb += 16
            os.write(w, b"x")
        os._exit(0)
    os.close(w)
    mb = 0
    while os.read(r, 1):
        mb += 16
    facts["memory"] = mb
    facts["memory ended by"] = os.waitpid(pid, 0)[1]
print(json.dumps({"facts": facts, "attempts": attempts}))
