package shim

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	killPatience = 10 * time.Second
	killAlone    = 3 // rounds by the helper before root itself strikes
)

// killAll ends every process of uid and returns when none is left but zombies.
// A helper of that uid does it, since kill(-1) reaches nothing else then. If
// the helper can't be started (an agent at its pids limit) or the uid outlives
// several rounds, root's kill(-1) ends everything but PID 1; what else could
// be there are helpers. It reports false when something is left after
// killPatience, which only an uninterruptible wait in the kernel explains.
func (in *initProcess) killAll(uid, gid int) bool {
	in.helpers.pause()
	defer in.helpers.resume()
	begin := time.Now()
	for round := 0; ; round++ {
		err := in.helpers.kill(uid, gid)
		if err != nil || round >= killAlone {
			_ = syscall.Kill(-1, syscall.SIGKILL) // ESRCH: nothing there
		}
		if !uidAlive(uid) {
			return true
		}
		if time.Since(begin) > killPatience {
			return false
		}
		in.pauseFor(min(time.Millisecond<<min(round, 6), 50*time.Millisecond))
	}
}

// uidAlive reports whether a process of uid is running.
func uidAlive(uid int) bool {
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/status")
		if err == nil && runsAs(b, uid) {
			return true
		}
	}
	return false
}

// runsAs reads a process's status: any of its four uids counts, zombies don't.
func runsAs(status []byte, uid int) bool {
	id := strconv.Itoa(uid)
	sc := bufio.NewScanner(bytes.NewReader(status))
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		f := strings.Fields(value)
		switch key {
		case "State":
			if len(f) > 0 && (f[0] == "Z" || f[0] == "X") {
				return false
			}
		case "Uid":
			for _, v := range f {
				if v == id {
					return true
				}
			}
			return false
		}
	}
	return false
}
