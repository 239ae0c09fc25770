package shim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what the kernel says of a sandbox, seen from inside before there is
// an agent that could have a hand in it: nothing in here comes from a file of
// the image's.
type Facts struct {
	Shim  ProcessFacts `json:"shim"`
	Agent ProcessFacts `json:"agent"` // of a process that has become the agent's user as the agent will
	// Namespaces are the inode numbers by kind, such as "pid".
	Namespaces map[string]uint64 `json:"namespaces"`
	// UIDMap is /proc/self/uid_map: inside, outside, count. GIDMap is the groups'.
	UIDMap     [][3]int64   `json:"uid_map"`
	GIDMap     [][3]int64   `json:"gid_map"`
	Mounts     []MountFact  `json:"mounts"`
	Targets    []MountStat  `json:"targets"`
	Devices    []string     `json:"devices"`
	Interfaces []string     `json:"interfaces"`
	Cgroup     CgroupLimits `json:"cgroup"`
	OpenFiles  int64        `json:"open_files"` // hard limit; -1: none
	Secrets    []SecretFact `json:"secrets,omitempty"`
}

// ProcessFacts are a process's powers as /proc/<pid>/status has them.
type ProcessFacts struct {
	UIDs       [4]int            `json:"uids"` // real, effective, saved, of the file system
	GIDs       [4]int            `json:"gids"`
	Groups     []int             `json:"groups"`
	Caps       map[string]uint64 `json:"caps"` // CapInh, CapPrm, CapEff, CapBnd, CapAmb
	NoNewPrivs bool              `json:"no_new_privs"`
	// Seccomp is the mode, 2 for filters, and SeccompFilters their number, 0
	// where the kernel doesn't tell.
	Seccomp        int `json:"seccomp"`
	SeccompFilters int `json:"seccomp_filters"`
}

// MountFact is a line of /proc/self/mountinfo.
type MountFact struct {
	Target  string   `json:"target"`
	Type    string   `json:"type"`
	Options []string `json:"options"` // of the mount and, after them, of its file system
	RO      bool     `json:"ro"`      // the mount, or its file system
}

// attest collects the facts and writes them to out: as root what root sees,
// then as the agent.
func attest(req fileRequest, out io.Writer) error {
	var f Facts
	var err error
	if f.Shim, err = processFacts("/proc/1/status"); err != nil {
		return err
	}
	if err := f.ofSandbox(); err != nil {
		return err
	}
	f.Secrets = secretFacts(SecretsDir)
	if f.Targets, err = stats(req); err != nil { // becomes the agent's user
		return err
	}
	tryAsAgent(SecretsDir, f.Secrets)
	if f.Agent, err = processFacts("/proc/self/status"); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(f)
}

func (f *Facts) ofSandbox() error {
	f.Namespaces = map[string]uint64{}
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return fmt.Errorf("attest: %w", err)
		}
		f.Namespaces[kind], err = strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, kind+":["), "]"), 10, 64)
		if err != nil {
			return fmt.Errorf("attest: namespace %q: %w", link, err)
		}
	}
	for file, parse := range map[string]func([]byte) error{
		"/proc/self/uid_map":   func(b []byte) (err error) { f.UIDMap, err = parseIDMap(b); return err },
		"/proc/self/gid_map":   func(b []byte) (err error) { f.GIDMap, err = parseIDMap(b); return err },
		"/proc/self/mountinfo": func(b []byte) (err error) { f.Mounts, err = parseMountinfo(b); return err },
		"/proc/net/dev":        func(b []byte) error { f.Interfaces = parseInterfaces(b); return nil },
	} {
		b, err := os.ReadFile(file)
		if err == nil {
			err = parse(b)
		}
		if err != nil {
			return fmt.Errorf("attest: %s: %w", file, err)
		}
	}
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return fmt.Errorf("attest: %w", err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeDevice != 0 {
			f.Devices = append(f.Devices, e.Name())
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("attest: %w", err)
	}
	f.OpenFiles = -1
	if files.Max < 1<<62 {
		f.OpenFiles = int64(files.Max)
	}
	f.Cgroup = readCgroupLimits("/sys/fs/cgroup", "/proc/self/cgroup")
	return nil
}

func processFacts(path string) (ProcessFacts, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return ProcessFacts{}, fmt.Errorf("attest: %w", err)
	}
	f, err := parseStatus(b)
	if err != nil {
		return f, fmt.Errorf("attest: %s: %w", path, err)
	}
	return f, nil
}

func parseStatus(b []byte) (ProcessFacts, error) {
	f := ProcessFacts{Caps: map[string]uint64{}, Groups: []int{}}
	seen := 0
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(value)
		var err error
		switch key {
		case "Uid":
			err = fourInts(fields, &f.UIDs)
		case "Gid":
			err = fourInts(fields, &f.GIDs)
		case "Groups":
			f.Groups, err = ints(fields)
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			f.Caps[key], err = strconv.ParseUint(strings.Join(fields, ""), 16, 64)
		case "NoNewPrivs":
			f.NoNewPrivs = slices.Equal(fields, []string{"1"})
		case "Seccomp":
			f.Seccomp, err = strconv.Atoi(strings.Join(fields, ""))
		case "Seccomp_filters":
			f.SeccompFilters, err = strconv.Atoi(strings.Join(fields, ""))
			seen-- // since Linux 5.9
		default:
			continue
		}
		if err != nil {
			return f, fmt.Errorf("%s: %w", key, err)
		}
		seen++
	}
	const facts = 10
	if seen != facts {
		return f, fmt.Errorf("%d of %d facts", seen, facts)
	}
	return f, nil
}

func fourInts(fields []string, into *[4]int) error {
	list, err := ints(fields)
	if err != nil {
		return err
	}
	if len(list) != len(into) {
		return fmt.Errorf("%d numbers", len(list))
	}
	copy(into[:], list)
	return nil
}

func ints(fields []string) ([]int, error) {
	list := make([]int, len(fields))
	for i, s := range fields {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller's
		}
		list[i] = int(n)
	}
	return list, nil
}

func parseIDMap(b []byte) ([][3]int64, error) {
	var list [][3]int64
	for line := range strings.Lines(string(b)) {
		fields, err := ints(strings.Fields(line))
		if err != nil || len(fields) != 3 {
			return nil, fmt.Errorf("line %q", line)
		}
		list = append(list, [3]int64{int64(fields[0]), int64(fields[1]), int64(fields[2])})
	}
	return list, nil
}

// parseMountinfo reads the fields that proc_pid_mountinfo(5) describes: those
// before a lone "-" are the mount's, those after it its file system's.
func parseMountinfo(b []byte) ([]MountFact, error) {
	var list []MountFact
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 {
			return nil, fmt.Errorf("line %q", line)
		}
		m := MountFact{Target: unescape(fields[4]), Type: fields[dash+1], Options: strings.Split(fields[5], ",")}
		super := strings.Split(fields[dash+3], ",")
		m.RO = slices.Contains(m.Options, "ro") || slices.Contains(super, "ro")
		list = append(list, m)
	}
	return list, nil
}

// unescape undoes the octal forms of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func parseInterfaces(b []byte) []string {
	list := []string{}
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			list = append(list, strings.TrimSpace(name))
		}
	}
	return list
}
