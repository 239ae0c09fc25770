package enginetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// userPrefix begins the names of users that tests make.
const userPrefix = "strt-"

// User is an ordinary user that a test made.
type User struct {
	Name     string
	UID, GID int
	Home     string
	Dir      string // its own, 0700, with a path short enough for sockets
}

// NewUser makes an ordinary user with ranges of subordinate ids, for rootless
// containers. It goes with the test, with its processes and files; one that a
// killed test left behind goes when the next is made. The test must run as
// root.
func NewUser(tb testing.TB) *User {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("only root can make users")
	}
	sweepUsers(tb)
	u := &User{Name: userPrefix + strings.ToLower(rand.Text()[:8])}
	u.Home = "/var/tmp/" + u.Name
	tb.Cleanup(func() { u.remove(tb) })
	// The comment names the process that owns the user, for sweepUsers.
	must(tb, "useradd", "--create-home", "--home-dir", u.Home, "--shell", "/bin/sh", "--user-group",
		"--comment", "test user of pid "+strconv.Itoa(os.Getpid()), u.Name)
	if err := os.Chmod(u.Home, 0o711); err != nil {
		tb.Fatal(err)
	}
	entry, err := user.Lookup(u.Name)
	if err != nil {
		tb.Fatal(err)
	}
	u.UID, _ = strconv.Atoi(entry.Uid)
	u.GID, _ = strconv.Atoi(entry.Gid)
	for _, kind := range []string{"uid", "gid"} {
		if data, err := os.ReadFile("/etc/sub" + kind); err != nil || !strings.Contains("\n"+string(data), "\n"+u.Name+":") {
			first := 1_000_000_000 + (u.UID-1000)*65536
			must(tb, "usermod", "--add-sub"+kind+"s", fmt.Sprintf("%d-%d", first, first+65535), u.Name)
		}
	}
	u.Dir = filepath.Join(u.Home, "d")
	if err := errors.Join(os.Mkdir(u.Dir, 0o711), os.Chown(u.Dir, u.UID, u.GID)); err != nil {
		tb.Fatal(err)
	}
	return u
}

// Command is a command that runs as the user, in its home, with nothing but
// its own environment and env.
func (u *User) Command(ctx context.Context, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = u.Home
	cmd.Env = append([]string{
		"HOME=" + u.Home, "USER=" + u.Name, "LOGNAME=" + u.Name, "PATH=/usr/local/bin:/usr/bin:/bin", "TMPDIR=" + u.Dir,
	}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
		Uid: uint32(u.UID), Gid: uint32(u.GID),
	}, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (u *User) remove(tb testing.TB) {
	tb.Helper()
	ids := ownIDs(u)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if u.UID >= 1000 {
		WaitFor(ctx, tb, "the end of the user's processes", func() bool { return killAll(ids) == 0 })
	}
	must(tb, "userdel", u.Name)
	shared, _ := filepath.Glob("/var/tmp/stromboli-" + strconv.Itoa(u.UID) + "-*")
	for _, path := range append(shared,
		u.Home, "/run/user/"+strconv.Itoa(u.UID), "/tmp/podman-run-"+strconv.Itoa(u.UID),
		"/tmp/storage-run-"+strconv.Itoa(u.UID), "/tmp/containers-user-"+strconv.Itoa(u.UID),
		"/dev/shm/libpod_rootless_lock_"+strconv.Itoa(u.UID), "/var/mail/"+u.Name,
	) {
		if u.UID < 1000 && path != u.Home {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			tb.Errorf("remove %s: %v", path, err)
		}
	}
}

// idRange is a range of ids, both ends included.
type idRange struct{ first, last int }

// ownIDs are the user's uid and its subordinate ones.
func ownIDs(u *User) []idRange {
	ids := []idRange{{u.UID, u.UID}}
	data, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return ids
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && f[0] == u.Name {
			first, _ := strconv.Atoi(f[1])
			n, _ := strconv.Atoi(f[2])
			if first >= 100_000 && n > 0 {
				ids = append(ids, idRange{first, first + n - 1})
			}
		}
	}
	return ids
}

// killAll kills the processes of these uids, one by one, and says how many
// there were.
func killAll(ids []idRange) int {
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range files {
		var st syscall.Stat_t
		pid, err := strconv.Atoi(filepath.Base(dir))
		// status, not the directory, whose owner is root for processes that are not dumpable.
		uid, ok := processUID(dir)
		if err != nil || !ok || syscall.Stat(dir, &st) != nil {
			continue
		}
		for _, r := range ids {
			if uid >= r.first && uid <= r.last && uid >= 1000 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				n++
			}
		}
	}
	return n
}

// processUID reads a process's real uid; false for one that is gone or a zombie.
func processUID(dir string) (int, bool) {
	data, err := os.ReadFile(dir + "/status")
	if err != nil || strings.Contains(string(data), "State:\tZ") {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Uid:" {
			uid, err := strconv.Atoi(f[1])
			return uid, err == nil
		}
	}
	return 0, false
}

// sweepUsers removes test users whose test is gone.
func sweepUsers(tb testing.TB) {
	tb.Helper()
	data, err := os.ReadFile("/etc/passwd")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || !strings.HasPrefix(f[0], userPrefix) {
			continue
		}
		owner := f[4][strings.LastIndex(f[4], " ")+1:]
		if _, err := os.Stat("/proc/" + owner); err == nil {
			continue
		}
		uid, _ := strconv.Atoi(f[2])
		gid, _ := strconv.Atoi(f[3])
		(&User{Name: f[0], UID: uid, GID: gid, Home: f[5]}).remove(tb)
	}
}

// must runs an administrator's command, and again while another one holds the
// lock on the user database.
func must(tb testing.TB, name string, args ...string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	WaitFor(ctx, tb, name, func() bool {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		out, err := cmd.CombinedOutput()
		if err != nil && !strings.Contains(string(out), "lock") {
			tb.Fatalf("%s: %v: %s", name, err, out)
		}
		return err == nil
	})
}
