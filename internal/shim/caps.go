package shim

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shedInheritable takes the inheritable and ambient capabilities and the
// chance of new privileges from the calling thread, to which the goroutine
// must be locked.
func shedInheritable() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no-new-privileges: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Inheritable == 0 && data[1].Inheritable == 0 {
		return nil
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	return nil
}

// checkPowerless reports an error unless the process is uid and gid in every
// respect and has neither capabilities nor supplementary groups. It proves
// what start has arranged, before the agent is given anything to do.
func checkPowerless(pid, uid, gid int) error {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return fmt.Errorf("verify the agent: %w", err)
	}
	const none = "0000000000000000"
	ids := func(id int) string { return strings.TrimSuffix(strings.Repeat(strconv.Itoa(id)+" ", 4), " ") }
	want := map[string]string{
		"Uid": ids(uid), "Gid": ids(gid), "Groups": "", "NoNewPrivs": "1",
		"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), ":")
		w, ok := want[key]
		if !ok {
			continue
		}
		if got := strings.Join(strings.Fields(value), " "); got != w {
			return fmt.Errorf("verify the agent: %s is %q, want %q", key, got, w)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		return fmt.Errorf("verify the agent: the kernel doesn't tell %d of the facts", len(want))
	}
	return nil
}
