package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// An engine's service that is killed between the making of a container's
// process and its start forgets both: conmon and the process that waits to
// become the container's first stay for ever.

// orphanAge is how old a conmon must be to be an orphan: an engine knows a
// container before it starts its conmon, and for long after.
const orphanAge = time.Minute

// ticksPerSecond is the unit of times in /proc, on every machine.
const ticksPerSecond = 100

// monitor is a conmon of a container that has the name of a sandbox's.
type monitor struct {
	pid, fd   int // fd: a pidfd
	container string
	name      string
}

// removeOrphans ends what is left of sandboxes that the engine has forgotten.
// What it ends is nobody's: it works in the engine's own store, belongs to the
// engine's user, and the engine knows neither its container's id nor its name.
func (m *Manager) removeOrphans(ctx context.Context, age time.Duration) error {
	if m.cfg.Container || m.cfg.Info.GraphRoot == "" {
		return nil // the engine's processes are not to be seen from here
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		mon, ok := m.monitorOf(pid, age)
		if !ok {
			continue
		}
		forgotten, err := m.forgotten(ctx, mon)
		if err == nil && forgotten {
			m.log.InfoContext(ctx, "ending what the engine has forgotten of a sandbox", "container", mon.name, "pid", pid)
			err = mon.end(entries)
		}
		_ = unix.Close(mon.fd)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// monitorOf recognises an old enough conmon of a sandbox. What is returned has
// a pidfd that the caller closes.
func (m *Manager) monitorOf(pid int, age time.Duration) (monitor, bool) {
	args := arguments(pid)
	if len(args) == 0 || filepath.Base(args[0]) != "conmon" {
		return monitor{}, false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return monitor{}, false
	}
	// As long as it lives the pid is its own, so what is read now is its.
	args = arguments(pid)
	mon := monitor{pid: pid, fd: fd, container: option(args, "-c"), name: option(args, "-n")}
	var st unix.Stat_t
	ours := unix.Stat("/proc/"+strconv.Itoa(pid), &st) == nil && int(st.Uid) == os.Geteuid()
	_, started, err := parentAndStart(pid)
	id, named := strings.CutPrefix(mon.name, containerName(""))
	if err != nil || !ours || !named || id == "" || mon.container == "" || m.answeredFor(id) ||
		!below(filepath.Clean(option(args, "-b")), m.cfg.Info.GraphRoot) || sinceBoot()-started < age ||
		unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
		_ = unix.Close(fd)
		return monitor{}, false
	}
	return mon, true
}

func (m *Manager) answeredFor(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ours[id]
}

// forgotten reports whether the engine knows nothing of a monitor's container.
func (m *Manager) forgotten(ctx context.Context, mon monitor) (bool, error) {
	for _, name := range []string{mon.container, mon.name} {
		_, err := m.cfg.Engine.Inspect(ctx, name)
		if err == nil {
			return false, nil
		}
		if !errors.Is(err, engine.ErrNotFound) {
			return false, err
		}
	}
	return true, nil
}

// end ends a monitor and its children. The first process of a container takes
// all others with it.
func (mon monitor) end(entries []os.DirEntry) error {
	var children []int
	defer func() {
		for _, fd := range children {
			_ = unix.Close(fd)
		}
	}()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, _, err := parentAndStart(pid); err != nil || parent != mon.pid {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if parent, _, err := parentAndStart(pid); err != nil || parent != mon.pid || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
			_ = unix.Close(fd) // another one by now
			continue
		}
		children = append(children, fd)
	}
	// The monitor first: it would start the engine's clean-up for its child.
	for _, fd := range append([]int{mon.fd}, children...) {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ending %s: %w", mon.name, err)
		}
	}
	return nil
}

// arguments is a process's command line, nil where there is none.
func arguments(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}

// option is the argument that follows a flag.
func option(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// parentAndStart reads a process's parent and when, after the machine's start,
// it began.
func parentAndStart(pid int) (parent int, started time.Duration, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	// The name, in parentheses, may hold anything; the last one ends it.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process %d has %d fields", pid, len(fields))
	}
	parent, err = strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0, 0, err
	}
	ticks, err := strconv.ParseInt(string(fields[19]), 10, 64)
	return parent, time.Duration(ticks) * time.Second / ticksPerSecond, err
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0 // nothing is old then
	}
	return time.Duration(ts.Nano())
}
