package podman

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// setting is one line of a containers.conf.
type setting struct {
	table, key, value string // value in TOML
	need              bool   // this machine works in no other way: overrules the user's
}

// settings are what a service of our own needs on a machine like f. With a
// store of its own it also needs places and locks of its own.
func settings(f hostFacts, p places) []setting {
	list := []setting{
		// A finished exec would keep its monitor for five minutes.
		{"engine", "exit_command_delay", "10", false},
		// The host's own /etc/hosts is none of a sandbox's business.
		{"containers", "base_hosts_file", `"none"`, false},
	}
	if !f.CgroupV2 {
		if f.Runc {
			// crun refuses hybrid hierarchies.
			list = append(list, setting{"engine", "runtime", `"runc"`, true})
		}
		list = append(list, setting{"engine", "cgroup_manager", `"cgroupfs"`, true})
	}
	if !f.Systemd {
		list = append(list, setting{"engine", "cgroup_manager", `"cgroupfs"`, true}, setting{"engine", "events_logger", `"file"`, true})
	}
	if !f.SysResource {
		// The engine's defaults are above what this process may have, and a
		// container with them fails at start.
		list = append(list, setting{
			"containers", "default_ulimits",
			fmt.Sprintf(`["nofile=%d:%d", "nproc=%d:%d"]`, f.Nofile, f.Nofile, f.Nproc, f.Nproc), true,
		})
	}
	if p.private {
		list = append(list,
			setting{"engine", "tmp_dir", quoteTOML(filepath.Join(p.run, "libpod")), true},
			// Locks in shared memory are one set per user: a second store's first
			// start would free those of the first.
			setting{"engine", "lock_type", `"file"`, true})
	}
	return list
}

// containersConf is the text of a containers.conf for a service of our own.
// CONTAINERS_CONF replaces every other file, so what the system and the user
// set comes first; ours overrules it only where needed.
func containersConf(f hostFacts, p places, env map[string]string, log *slog.Logger) string {
	conf := &confFile{}
	for _, file := range confFiles(f, env) {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if err := conf.merge(string(data)); err != nil {
			log.Warn("leaving out a Podman configuration file that is not understood", "file", file, "err", err)
		}
	}
	for _, s := range settings(f, p) {
		if s.need || !conf.has(s.table, s.key) {
			conf.set(s.table, s.key, s.value)
		}
	}
	return "# Written by stromboli at each start of its own Podman service; changes are lost.\n" +
		"# The system's and the user's containers.conf are part of it.\n" + conf.String()
}

// confFiles are the files that Podman would read, lowest rank first.
func confFiles(f hostFacts, env map[string]string) []string {
	if file := env["CONTAINERS_CONF"]; file != "" {
		return []string{file}
	}
	files := []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf"}
	files = append(files, confDir("/etc/containers/containers.conf.d")...)
	if !f.Root {
		dir := env["XDG_CONFIG_HOME"]
		if dir == "" {
			dir = filepath.Join(env["HOME"], ".config")
		}
		files = append(files, filepath.Join(dir, "containers", "containers.conf"))
		files = append(files, confDir(filepath.Join(dir, "containers", "containers.conf.d"))...)
	}
	return files
}

func confDir(dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, "*.conf"))
	if err != nil {
		return nil
	}
	slices.Sort(files)
	return files
}

func quoteTOML(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
