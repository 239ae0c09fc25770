package runner_test

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

// The tests' sandboxes are containers of the fake engine whose program is this
// binary again: the real shim as PID 1 of namespaces of its own, in a root
// directory that has the container's mounts. The agent CLI is a script. That
// needs root.
const (
	shimEnv = "STROMBOLI_RUNNER_TEST_SHIM"
	rootEnv = "STROMBOLI_RUNNER_TEST_ROOT"
	bindEnv = "STROMBOLI_RUNNER_TEST_BINDS"

	image   = "test/agent"
	imageID = 1000 // the agent's uid in it
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "helper" {
		os.Exit(shim.Main(os.Args))
	}
	switch os.Getenv(shimEnv) {
	case "prepare":
		err := prepare(os.Getenv(rootEnv), strings.Split(os.Getenv(bindEnv), "\n"))
		if err == nil {
			err = becomeContainerRoot()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case "run":
		os.Exit(shim.Main(os.Args))
	}
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = p.Value.Set("8") // they mostly wait
	}
	os.Exit(m.Run())
}

// prepare makes a container's file system below root and goes there.
func prepare(root string, binds []string) error {
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, dir := range []string{"/bin", "/lib", "/lib64", "/usr", "/etc", "/dev", "/sys"} {
		if _, err := os.Stat(dir); err == nil {
			binds = append(binds, dir+":"+dir)
		}
	}
	for _, bind := range binds {
		from, to, ok := strings.Cut(bind, ":")
		if !ok || strings.HasPrefix(to, "/etc/") || to == "/run/stromboli/shim" || to == sandbox.ConnectPath {
			continue
		}
		to = filepath.Join(root, to)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", bind, err)
		}
	}
	for _, dir := range []string{"proc", "spool"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	if err := unix.Chroot(root); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return loopbackUp()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// becomeContainerRoot starts this binary anew, in the same process, with what
// an engine leaves to a sandbox's root.
func becomeContainerRoot() error {
	runtime.LockOSThread() // bounding sets belong to threads
	const kept = 1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if kept&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: kept, Permitted: kept}}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := os.Setenv(shimEnv, "run"); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// shims runs the containers' first processes.
type shims struct {
	t    testing.TB
	root string // their root directories, empty outside

	mu  sync.Mutex
	pid map[string]int // by container name
}

// program is the fake engine's Program.
func (s *shims) program(ctx context.Context, p enginetest.Process) int {
	root, err := os.MkdirTemp(s.root, "root")
	if err != nil {
		return 125
	}
	var binds []string
	for _, m := range p.Spec.Mounts {
		binds = append(binds, m.Source+":"+m.Target)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "--run", "/spool")
	// The race detector would have every helper wait a second at its end.
	cmd.Env = append(os.Environ(), shimEnv+"=prepare", rootEnv+"="+root, bindEnv+"="+strings.Join(binds, "\n"), "GORACE=atexit_sleep_ms=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		s.t.Errorf("starting a shim: %v", err)
		return 125
	}
	s.mu.Lock()
	s.pid[p.Spec.Name] = cmd.Process.Pid
	s.mu.Unlock()
	_ = cmd.Wait()
	if out := stderr.String(); strings.Contains(out, "DATA RACE") || strings.Contains(out, "panic:") || cmd.ProcessState.ExitCode() == 2 {
		s.t.Errorf("a shim said:\n%s", out)
	}
	return cmd.ProcessState.ExitCode()
}

// signal sends a signal to the first process of a sandbox.
func (s *shims) signal(sandboxID string, sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pid := s.pid["stromboli-"+sandboxID]; pid > 0 {
		_ = syscall.Kill(pid, sig)
	}
}

// newEngine returns a fake engine with the agent image.
func newEngine(t testing.TB, fail func(method string) error) (*enginetest.Fake, *shims) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for namespaces and users")
	}
	s := &shims{t: t, root: shortDir(t), pid: make(map[string]int)}
	fake := enginetest.NewFake(enginetest.FakeConfig{Program: s.program, Fail: fail})
	t.Cleanup(fake.Close)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range map[string]string{
		"bin/bash": "bash", "lib64/ld-linux-x86-64.so.2": "loader", "lib/ld-linux-aarch64.so.1": "loader",
		"run/stromboli/shim": "shim", "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n", "etc/group": "root:x:0:\n",
	} {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}))
		_, err := w.Write([]byte(text))
		must(t, err)
	}
	must(t, w.Close())
	_, err := fake.ImageImport(t.Context(), &b, image)
	must(t, err)
	return fake, s
}

// shortDir is a directory whose path leaves room for the sockets below it and
// that other users may pass.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "r")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o711))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
