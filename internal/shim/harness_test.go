package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests' shim is this binary again as PID 1 of namespaces of its own, with
// a /proc and a loopback interface as an engine gives it. The agents are real
// processes of real users, so these tests need root.
const initEnv = "STROMBOLI_SHIM_TEST_INIT"

const (
	testToken = "secret-token"
	agentUID  = 1000
	agentGID  = 1001
	patience  = 60 * time.Second
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		os.Exit(Main(os.Args))
	}
	switch os.Getenv(initEnv) {
	case "prepare":
		err := prepareNamespaces()
		if err == nil {
			err = becomeContainerRoot()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case "run":
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

// cgroupEnv lists directories of cgroups that the shim is to be in.
const cgroupEnv = "STROMBOLI_SHIM_TEST_CGROUPS"

func prepareNamespaces() error {
	for _, dir := range filepath.SplitList(os.Getenv(cgroupEnv)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
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
// an engine leaves to a sandbox's root: three capabilities, and supplementary
// groups and an inheritable capability that nobody asked for.
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
	if err := syscall.Setgroups([]int{4, agentGID + 1}); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: kept, Permitted: kept, Inheritable: 1 << unix.CAP_SETUID}}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	if err := os.Setenv(initEnv, "run"); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// box is a sandbox's stand-in: a shim in namespaces of its own.
type box struct {
	t        testing.TB
	host     string
	run      string
	work     string // the agent's own directory
	cfg      Config
	cmd      *exec.Cmd
	stderr   *lockedBuffer
	ended    chan struct{}
	exitCode int
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newBox(t testing.TB, change func(*Config)) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for namespaces and users")
	}
	dir := publicDir(t)
	b := &box{
		t: t, host: filepath.Join(dir, "host"), run: filepath.Join(dir, "run"), work: filepath.Join(dir, "work"),
		cfg: Config{Sandbox: "sb", Token: testToken}, stderr: &lockedBuffer{}, ended: make(chan struct{}),
	}
	for _, d := range []string{b.host, b.run, b.work} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.Chown(b.work, agentUID, agentGID))
	if change != nil {
		change(&b.cfg)
	}
	raw, err := json.Marshal(b.cfg)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.host, ConfigName), raw, 0o644))

	b.cmd = exec.Command("/proc/self/exe", "--host", b.host, "--run", b.run)
	// The race detector would have every helper wait a second at its end.
	b.cmd.Env = append(os.Environ(), initEnv+"=prepare", "GORACE=atexit_sleep_ms=0")
	b.cmd.Stderr = b.stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL,
	}
	must(t, b.cmd.Start())
	go func() {
		_ = b.cmd.Wait()
		b.exitCode = b.cmd.ProcessState.ExitCode()
		close(b.ended)
	}()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.ended
		if s := b.stderr.String(); strings.Contains(s, "DATA RACE") || strings.Contains(s, "panic") || t.Failed() {
			t.Errorf("the shim said:\n%s", s)
		}
	})
	return b
}

func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func (b *box) socket() string { return filepath.Join(b.host, ServerSocket) }

// server is one life of a server.
type server struct {
	*Peer
	t    testing.TB
	done chan error
}

func (b *box) serve(change func(*PeerConfig)) *server {
	b.t.Helper()
	cfg := PeerConfig{
		Path: b.socket(), SandboxID: b.cfg.Sandbox, Token: b.cfg.Token,
		PeerUID: func(context.Context) (PeerRule, error) { return PeerRule{}, nil },
		Alive: func(context.Context) (bool, error) {
			select {
			case <-b.ended:
				return false, nil
			default:
				return true, nil
			}
		},
	}
	if change != nil {
		change(&cfg)
	}
	return startPeer(b.t, cfg)
}

// serveAs is serve for a server that differs from this build's.
func (b *box) serveAs(change func(*Peer)) *server {
	b.t.Helper()
	return startPeerAs(b.t, PeerConfig{Path: b.socket(), SandboxID: b.cfg.Sandbox, Token: b.cfg.Token}, change)
}

func startPeer(t testing.TB, cfg PeerConfig) *server {
	t.Helper()
	return startPeerAs(t, cfg, func(*Peer) {})
}

// startPeerAs starts a server that differs from this build's.
func startPeerAs(t testing.TB, cfg PeerConfig, change func(*Peer)) *server {
	t.Helper()
	p, err := Listen(cfg)
	must(t, err)
	change(p)
	s := &server{Peer: p, t: t, done: make(chan error, 1)}
	go func() { s.done <- p.Run(context.Background()) }()
	t.Cleanup(s.die)
	return s
}

// die ends the server as far as the shim can tell; again is nothing.
func (s *server) die() {
	_ = s.Close()
	if s.done != nil {
		if err := <-s.done; err != nil {
			s.t.Log(err)
		}
		s.done = nil
	}
}

// drop cuts the connection that there is.
func (s *server) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.close()
	}
}

func ctx(t testing.TB) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return c
}

// bash is an agent that runs a script.
func (b *box) bash(script string) Process {
	return Process{
		ID: "run-1", Argv: []string{"/bin/bash", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "HOME=" + b.work},
		Dir: b.work, UID: agentUID, GID: agentGID,
	}
}

// finish reads and acknowledges lines after the given one to the Exit line.
func (s *server) finish(after int64) ([]Line, ExitStatus) {
	s.t.Helper()
	var all []Line
	for {
		lines, err := s.Next(ctx(s.t), after, 1000)
		if err != nil {
			s.t.Fatalf("next after %d: %v", after, err)
		}
		all = append(all, lines...)
		last := lines[len(lines)-1]
		after = last.Seq
		s.Ack(after)
		if last.Stream == Exit {
			status, err := ParseExit(last.Data)
			must(s.t, err)
			return all, status
		}
	}
}

// text joins the lines of one stream.
func text(lines []Line, stream Stream) string {
	var b strings.Builder
	for _, l := range lines {
		if l.Stream == stream {
			b.Write(l.Data)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func checkGapless(t *testing.T, lines []Line) {
	t.Helper()
	for i, l := range lines {
		if l.Seq != int64(i+1) {
			t.Fatalf("line %d has sequence %d", i+1, l.Seq)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if re, ok := errors.AsType[*RemoteError](err); !ok || re.Code != code {
		t.Errorf("error is %v, want code %q", err, code)
	}
}

// eventually polls until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	c := ctx(t)
	for !ok() {
		if !wait(c, 5*time.Millisecond) {
			t.Fatalf("never: %s", what)
		}
	}
}

const sigterm = syscall.SIGTERM

func runShell(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(ctx(t), "/bin/bash", "-c", script).Output()
	must(t, err)
	return string(out)
}
