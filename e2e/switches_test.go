package e2e_test

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// switchesSeen is what an agent's process and its run's attestation tell of a
// server's hardening.
type switchesSeen struct {
	inside map[string]string
	said   stromboli.Attestation
}

// switchesDefault are the facts that switches change, as they are with none.
func switchesDefault() map[string]string {
	return map[string]string{
		"personality": "refused", "clone3": "ENOSYS", "Seccomp_filters": "2", "root": "EROFS", "masked": "True",
		"ipc": "own", "uts": "own", "cgroup": "own", "hostname": "sandbox", "files": "65536", "shm": "64m", "pids": "1024", "swap": "0", "memory": "1g", "cpus": "1",
		// What can't be switched off.
		"NoNewPrivs": "1", "CapEff": "0000000000000000", "pid": "own", "mnt": "own", "net": "own",
	}
}

// TestSwitches: each hardening is in force unless its setting switches it off,
// and then it alone is off: seen by an agent's process, and told by the
// attestation.
func TestSwitches(t *testing.T) {
	t.Parallel()
	info, err := suite.engine.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	singles := map[string]map[string]string{
		"STROMBOLI_SANDBOX_SECCOMP=unconfined":   {"personality": "done", "Seccomp_filters": "1"},
		"STROMBOLI_SANDBOX_SYSCALL_FILTER=false": {"Seccomp_filters": "1"}, // some engines' profiles refuse clone3 too
		"STROMBOLI_SANDBOX_READ_ONLY_ROOT=false": {"root": "done"},
		"STROMBOLI_SANDBOX_MASKED_PATHS=false":   {"masked": "False"},
		"STROMBOLI_SANDBOX_IPCNS=host":           {"ipc": "host", "shm": "host"},
		"STROMBOLI_SANDBOX_UTSNS=host":           {"uts": "host", "hostname": host},
		"STROMBOLI_SANDBOX_CGROUPNS=host":        {"cgroup": "host"},
		"STROMBOLI_SANDBOX_PIDS_LIMIT=0":         {"pids": "none"},
		"STROMBOLI_SANDBOX_OPEN_FILES=0":         {"files": "engine"},
		"STROMBOLI_SANDBOX_SWAP=true":            {"swap": "1073741824"},
		"STROMBOLI_RESOURCES_MEMORY=0":           {"memory": "none"},
		"STROMBOLI_RESOURCES_CPUS=0":             {"cpus": "none"},
		"STROMBOLI_RESOURCES_DISK=0":             {}, // TestMeter
		"STROMBOLI_SANDBOX_USERNS=none":          {}, // TestUserNamespace
	}
	all := slices.Sorted(maps.Keys(singles))
	everything := map[string]string{}
	for _, changed := range singles {
		maps.Copy(everything, changed)
	}
	everything["clone3"], everything["Seccomp_filters"] = "EINVAL", "0"
	delete(everything, "swap") // which takes a limit of memory
	cases := map[string]struct {
		off     []string
		changed map[string]string
	}{"nothing": {}, "everything": {all, everything}}
	// Those that have an effect of their own on others, or none of which the two
	// above would tell.
	for _, name := range []string{"STROMBOLI_SANDBOX_SECCOMP=unconfined", "STROMBOLI_SANDBOX_SYSCALL_FILTER=false", "STROMBOLI_SANDBOX_SWAP=true"} {
		cases[name] = struct {
			off     []string
			changed map[string]string
		}{[]string{name}, singles[name]}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, c.off...)
			seen := s.switches(t)
			want := switchesDefault()
			maps.Copy(want, c.changed)
			for fact, w := range want {
				got := seen.inside[fact]
				switch {
				case fact == "clone3" && len(c.off) == 1 && strings.Contains(c.off[0], "SYSCALL_FILTER"):
				case fact == "files" && w == "65536": // or fewer, where the engine may not give so many
					if n, err := strconv.Atoi(got); err != nil || n > 65536 {
						t.Errorf("files: %s", got)
					}
				case fact == "files":
				case !info.EnforcesLimits && slices.Contains([]string{"pids", "swap", "memory", "cpus"}, fact):
				case fact == "swap" && !info.LimitsSwap:
				case fact == "swap" && len(c.off) > 1:
				case got != w:
					t.Errorf("%s is %q, want %q", fact, got, w)
				}
			}
			off := slices.Clone(c.off)
			if suite.rootless {
				off = slices.DeleteFunc(off, func(s string) bool { return strings.HasPrefix(s, "STROMBOLI_SANDBOX_USERNS") })
			}
			if got := slices.Sorted(slices.Values(seen.said.SwitchedOff)); !slices.Equal(got, slices.Sorted(slices.Values(off))) {
				t.Errorf("the attestation says that %v is switched off, not %v", got, off)
			}
			if len(c.off) == 0 {
				switchesByRequest(t, s)
			}
		})
	}
}

// switches has an agent look around.
func (s *server) switches(t *testing.T) switchesSeen {
	t.Helper()
	script, err := os.ReadFile("testdata/switches.py")
	if err != nil {
		t.Fatal(err)
	}
	job, out := s.probe("python3 /probe/switches.py", map[string]string{"switches.py": string(script)})
	a, err := s.c.Attestation(s.ctx(), job.ID)
	if err != nil {
		t.Fatal(err)
	}
	in := probeLines(out)
	for _, kind := range []string{"ipc", "uts", "cgroup", "pid", "mnt", "net"} {
		own, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if in[kind] == own {
			in[kind] = "host"
		} else if in[kind] != "" {
			in[kind] = "own"
		}
		if a.Namespaces[kind] != (in[kind] == "own") {
			t.Errorf("the attestation says of the %s namespace %v", kind, a.Namespaces[kind])
		}
	}
	switch in["personality"] {
	case "EPERM", "ENOSYS":
		in["personality"] = "refused"
	}
	if in["shm"] = "host"; in["ipc"] == "own" {
		in["shm"] = "64m"
	}
	for name, limit := range map[string]string{"pids": "pids", "swap": "swap_bytes", "memory": "memory_bytes", "cpus": "nano_cpus"} {
		switch n := a.Limits[limit].InForce; {
		case n < 0:
			in[name] = "none"
		case name == "memory":
			in[name] = strconv.FormatInt(n>>30, 10) + "g"
		case name == "cpus":
			in[name] = strconv.FormatInt(n/1e9, 10)
		default:
			in[name] = strconv.FormatInt(n, 10)
		}
	}
	if n := strconv.Itoa(a.Agent.SeccompFilters); n != in["Seccomp_filters"] || a.ReadOnly != (in["root"] == "EROFS") || (len(a.Masked) > 0) != (in["masked"] == "True") {
		t.Errorf("the attestation says %s filters, read-only %v, masked %v; inside there are %v", n, a.ReadOnly, a.Masked, in)
	}
	return switchesSeen{inside: in, said: a}
}

// switchesByRequest: whatever a request calls it, nothing of the hardening is
// its to change.
func switchesByRequest(t *testing.T, s *server) {
	t.Helper()
	for _, field := range []string{
		`"seccomp":"unconfined"`, `"security_opt":["seccomp=unconfined"]`, `"read_only":false`, `"read_only_root":false`, `"unmask":["ALL"]`, `"ipc":"host"`, `"uts":"host"`,
		`"cgroupns":"host"`, `"pid":"host"`, `"userns":"host"`, `"privileged":true`, `"cap_add":["SYS_ADMIN"]`, `"no_new_privileges":false`, `"pids_limit":0`, `"memory_swap":"-1"`,
		`"ulimit":["nofile=1"]`, `"devices":["/dev/kmsg"]`,
	} {
		name, _, _ := strings.Cut(strings.Trim(field, `"`), `"`)
		for _, body := range []string{`{"prompt":"x","podman":{` + field + `}}`, `{"prompt":"x","sandbox":{` + field + `}}`, `{"prompt":"x",` + field + `}`} {
			a := s.send(t, "POST", "/run", body, "Content-Type: application/json")
			if a.status != 400 || !strings.Contains(string(a.body), "invalid_request") {
				t.Errorf("%s (%s): %d %s", body, name, a.status, a.body)
			}
		}
	}
}
