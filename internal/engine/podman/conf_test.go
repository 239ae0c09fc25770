package podman

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSettings(t *testing.T) {
	ci := hostFacts{Runc: true, Nofile: 20000, Nproc: 4096}
	desktop := hostFacts{CgroupV2: true, Systemd: true, SysResource: true, Runc: true, Nofile: 1 << 20, Nproc: 1 << 20}
	own := placesIn("/d")
	own.private = true
	for name, c := range map[string]struct {
		facts hostFacts
		p     places
		want  map[string]string
	}{
		"a machine that lacks everything": {ci, placesIn("/d"), map[string]string{
			"exit_command_delay": "10", "base_hosts_file": `"none"`, "runtime": `"runc"`, "cgroup_manager": `"cgroupfs"`,
			"events_logger": `"file"`, "default_ulimits": `["nofile=20000:20000", "nproc=4096:4096"]`,
		}},
		"a machine that lacks nothing": {desktop, placesIn("/d"), map[string]string{
			"exit_command_delay": "10", "base_hosts_file": `"none"`,
		}},
		"a store of its own": {desktop, own, map[string]string{
			"exit_command_delay": "10", "base_hosts_file": `"none"`, "tmp_dir": `"/d/run/libpod"`, "lock_type": `"file"`,
		}},
	} {
		got := map[string]string{}
		for _, s := range settings(c.facts, c.p) {
			got[s.key] = s.value
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestContainersConfKeepsTheUsers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "containers.conf")
	text := `# mine
[containers]
volumes = [
  "/a:/b", # with ] in a comment
  "/c:/d",
]
base_hosts_file = "image"
[engine]
runtime = "crun" # overruled
num_locks = 4096
[engine.runtimes]
kata = ["/usr/bin/kata"]
[network]
network_backend = "netavark"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	env := map[string]string{"CONTAINERS_CONF": file}
	got := containersConf(hostFacts{Runc: true}, placesIn("/d"), env, log)
	for _, want := range []string{
		"volumes = [\n  \"/a:/b\", # with ] in a comment\n  \"/c:/d\",\n]", `base_hosts_file = "image"`, `runtime = "runc"`,
		"num_locks = 4096", "[engine.runtimes]\nkata = [\"/usr/bin/kata\"]", `network_backend = "netavark"`, "exit_command_delay = 10",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "crun") || strings.Count(got, "[engine]") != 1 {
		t.Errorf("not merged:\n%s", got)
	}
	if err := os.WriteFile(file, []byte("[[x]]\nnonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := containersConf(hostFacts{Runc: true}, placesIn("/d"), env, log); strings.Contains(got, "nonsense") || !strings.Contains(got, "runc") {
		t.Errorf("with a broken file:\n%s", got)
	}
}

func TestConfFilesByRank(t *testing.T) {
	got := confFiles(hostFacts{}, map[string]string{"HOME": "/home/a"})
	if got[0] != "/usr/share/containers/containers.conf" || got[len(got)-1] != "/home/a/.config/containers/containers.conf" {
		t.Errorf("an ordinary user's: %v", got)
	}
	if got := confFiles(hostFacts{Root: true}, map[string]string{"HOME": "/root"}); strings.Contains(strings.Join(got, " "), "/root") {
		t.Errorf("root's: %v", got)
	}
}

func FuzzConfMerge(f *testing.F) {
	f.Add("[a]\nb = [\n1, # ]\n2]\nc = \"x\\\"[\"\n")
	f.Add("[[x]]")
	f.Add("k = '")
	f.Add("[t]\nk = {a = 1}\n")
	f.Fuzz(func(t *testing.T, text string) {
		var once, twice confFile
		if once.merge(text) != nil {
			if len(once.tables) != 0 {
				t.Error("a refused file left something")
			}
			return
		}
		if err := twice.merge(once.String()); err != nil {
			t.Skip("not every reading can be written: ", err)
		}
		if once.String() != twice.String() {
			t.Errorf("%q became %q", once.String(), twice.String())
		}
	})
}
