package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const statusText = `Name:	x
Uid:	1000	1000	1000	1000
Gid:	7	7	7	7
Groups:	4 5
CapInh:	0000000000000000
CapPrm:	00000000000000e0
CapEff:	00000000000000e0
CapBnd:	00000000000000e0
CapAmb:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
Seccomp_filters:	2
`

func TestParseStatus(t *testing.T) {
	got, err := parseStatus([]byte(statusText))
	want := ProcessFacts{
		UIDs: [4]int{1000, 1000, 1000, 1000}, GIDs: [4]int{7, 7, 7, 7}, Groups: []int{4, 5},
		Caps: map[string]uint64{"CapInh": 0, "CapPrm": 0xe0, "CapEff": 0xe0, "CapBnd": 0xe0, "CapAmb": 0}, NoNewPrivs: true, Seccomp: 2, SeccompFilters: 2,
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if _, err := parseStatus([]byte(strings.ReplaceAll(statusText, "Seccomp_filters:\t2\n", ""))); err != nil {
		t.Errorf("an older kernel: %v", err)
	}
	for _, bad := range []string{"", strings.Replace(statusText, "NoNewPrivs:\t1\n", "", 1), strings.Replace(statusText, "00e0", "zz", 1), strings.Replace(statusText, "1000\t1000", "1000", 1)} {
		if _, err := parseStatus([]byte(bad)); err == nil {
			t.Errorf("taken: %q", bad)
		}
	}
}

func TestParseMountinfo(t *testing.T) {
	got, err := parseMountinfo([]byte(`22 1 0:5 / / ro,relatime - overlay overlay rw,lowerdir=x
30 22 8:1 /a /with\040space rw,nosuid,nodev shared:1 master:2 - ext4 /dev/sda1 rw
31 22 0:6 / /proc/keys rw - tmpfs tmpfs ro,size=0k
`))
	want := []MountFact{
		{Target: "/", Type: "overlay", Options: []string{"ro", "relatime"}, RO: true},
		{Target: "/with space", Type: "ext4", Options: []string{"rw", "nosuid", "nodev"}},
		{Target: "/proc/keys", Type: "tmpfs", Options: []string{"rw"}, RO: true},
	}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"22 1 0:5 / / ro", "22 1 0:5 / / ro - ext4", "x"} {
		if got, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestCgroupLimits(t *testing.T) {
	for _, c := range []struct {
		name, proc string
		files      map[string]string
		want       CgroupLimits
	}{
		{"v2", "0::/\n", map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "cpu.max": "50000 100000", "cpu.weight": "20", "pids.max": "77"}, CgroupLimits{1 << 20, 0, 5e8, 77, -1, 20}},
		{"v2, none", "0::/\n", map[string]string{"memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000", "pids.max": "max"}, CgroupLimits{-1, -1, -1, -1, -1, -1}},
		{
			"v1, the host's tree", "4:memory:/a/b\n3:cpu,cpuacct:/a/b\n2:pids:/a/b\n0::/\n",
			map[string]string{
				"memory/a/b/memory.limit_in_bytes": "1048576", "memory/a/b/memory.memsw.limit_in_bytes": "1048576", "memory/memory.limit_in_bytes": "9223372036854771712",
				"cpu,cpuacct/a/b/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000", "cpu,cpuacct/a/b/cpu.shares": "512", "pids/a/b/pids.max": "5",
			},
			CgroupLimits{1 << 20, 0, 2e9, 5, 512, -1},
		},
		{
			"v1, its own tree", "4:memory:/\n3:cpu,cpuacct:/\n2:pids:/\n",
			map[string]string{"memory/memory.limit_in_bytes": "4096", "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "pids/pids.max": "max"},
			CgroupLimits{4096, -1, -1, -1, -1, -1},
		},
		{"nothing", "", nil, CgroupLimits{-1, -1, -1, -1, -1, -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			proc := filepath.Join(dir, "cgroup")
			files := map[string]string{proc: c.proc}
			for name, text := range c.files {
				files[filepath.Join(dir, "root", name)] = text
			}
			for path, text := range files {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := readCgroupLimits(filepath.Join(dir, "root"), proc); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}
