package podman

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// wireSpec is libpod's SpecGenerator, as far as it is used.
type wireSpec struct {
	Name         string            `json:"name,omitempty"`
	Image        string            `json:"image"`
	Labels       map[string]string `json:"labels,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Command      []string          `json:"command"`
	Env          map[string]string `json:"env,omitempty"`
	HTTPProxy    bool              `json:"httpproxy"`
	User         string            `json:"user,omitempty"`
	Workdir      string            `json:"work_dir,omitempty"`
	Hostname     string            `json:"hostname,omitempty"`
	Timezone     string            `json:"timezone,omitempty"`
	Mounts       []wireMount       `json:"mounts,omitempty"`
	Secrets      []wireSecret      `json:"secrets,omitempty"`
	ReadOnly     bool              `json:"read_only_filesystem"`
	ReadOnlyTmp  bool              `json:"read_write_tmpfs"`
	ShmSize      int64             `json:"shm_size,omitempty"`
	CapAdd       []string          `json:"cap_add,omitempty"`
	CapDrop      []string          `json:"cap_drop,omitempty"`
	NoNewPrivs   bool              `json:"no_new_privileges"`
	SELinuxOpts  []string          `json:"selinux_opts,omitempty"`
	Seccomp      string            `json:"seccomp_profile_path,omitempty"`
	Unmask       []string          `json:"unmask,omitempty"`
	UserNS       wireNS            `json:"userns"`
	IDMappings   *wireIDMappings   `json:"idmappings,omitempty"`
	PidNS        wireNS            `json:"pidns"`
	IpcNS        wireNS            `json:"ipcns"`
	UtsNS        wireNS            `json:"utsns"`
	NetNS        wireNS            `json:"netns"`
	CgroupNS     wireNS            `json:"cgroupns"`
	CgroupsMode  string            `json:"cgroups_mode"`
	Rlimits      []wireRlimit      `json:"r_limits,omitempty"`
	Resources    wireResources     `json:"resource_limits"`
	Log          wireLog           `json:"log_configuration"`
	ManagePasswd bool              `json:"manage_passwd"`
	StopTimeout  uint              `json:"stop_timeout"`
	SdNotify     string            `json:"sdnotifyMode"`
	Systemd      string            `json:"systemd"`
}

type wireMount struct {
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Destination string   `json:"destination"`
	Options     []string `json:"options"`
}

type wireNS struct {
	Mode  string `json:"nsmode,omitempty"`
	Value string `json:"value,omitempty"`
}

// wireIDMappings has the field names of the storage library's own type.
type wireIDMappings struct {
	HostUIDMapping bool
	HostGIDMapping bool
	UIDMap         []wireIDMap
	GIDMap         []wireIDMap
}

type wireIDMap struct {
	Container uint32 `json:"container_id"`
	Host      uint32 `json:"host_id"`
	Size      uint32 `json:"size"`
}

func wireIDMaps(ranges []engine.IDRange) []wireIDMap {
	out := make([]wireIDMap, len(ranges))
	for i, r := range ranges {
		out[i] = wireIDMap(r)
	}
	return out
}

type wireRlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

type wireResources struct {
	Memory *wireMemory `json:"memory,omitempty"`
	CPU    *wireCPU    `json:"cpu,omitempty"`
	Pids   *wirePids   `json:"pids,omitempty"`
}

type wireMemory struct {
	Limit int64 `json:"limit"`
	Swap  int64 `json:"swap"` // memory plus swap
}

type wireCPU struct {
	Quota  int64  `json:"quota,omitempty"`
	Period uint64 `json:"period,omitempty"`
	Shares uint64 `json:"shares,omitempty"`
}

type wirePids struct {
	Limit int64 `json:"limit"`
}

type wireLog struct {
	Driver string `json:"driver"`
}

// cpuPeriod is the kernel's own default, in microseconds.
const cpuPeriod = 100_000

func (c *Client) wireSpec(s engine.ContainerSpec) wireSpec {
	w := wireSpec{
		Name: s.Name, Image: s.Image, Labels: s.Labels, Entrypoint: s.Command, Command: []string{}, Env: s.Env,
		User: s.User, Workdir: s.Workdir, Hostname: s.Hostname, Timezone: s.Timezone,
		ReadOnly: s.ReadOnlyRoot, ShmSize: s.ShmBytes, CapAdd: s.CapAdd, CapDrop: s.CapDrop, NoNewPrivs: s.NoNewPrivileges,
		// Named, so that no configuration can make them the host's.
		NetNS: wireNS{Mode: string(engine.NetworkNone)}, UserNS: wireNS{Mode: "host"},
		PidNS: wireNS{Mode: "private"}, IpcNS: wireNS{Mode: "private"}, UtsNS: wireNS{Mode: "private"}, CgroupNS: wireNS{Mode: "private"},
		// A configuration that switches cgroups off must not switch the limits off.
		CgroupsMode: "enabled",
		Rlimits:     c.rlimits(s),
		Log:         wireLog{Driver: "none"},
		StopTimeout: uint(max(0, (s.StopTimeout+time.Second-1)/time.Second)),
		SdNotify:    "ignore", Systemd: "false",
	}
	if s.Network != "" {
		w.NetNS.Mode = string(s.Network)
	}
	switch {
	case s.UserNS.KeepID:
		w.UserNS = wireNS{Mode: "keep-id", Value: fmt.Sprintf("uid=%d,gid=%d", s.UserNS.UID, s.UserNS.GID)}
	case len(s.UserNS.UIDs) > 0:
		w.UserNS = wireNS{Mode: "private"}
		w.IDMappings = &wireIDMappings{UIDMap: wireIDMaps(s.UserNS.UIDs), GIDMap: wireIDMaps(s.UserNS.GIDs)}
	}
	w.relax(s)
	if s.LabelDisable {
		w.SELinuxOpts = []string{"disable"}
	}
	for _, t := range s.Tmpfs {
		// Without notmpcopyup the image's files, if any, would be copied in.
		opts := []string{"rw", "nosuid", "nodev", "noexec", "notmpcopyup", "mode=" + strconv.FormatUint(uint64(t.Mode.Perm()), 8)}
		if t.Bytes > 0 {
			opts = append(opts, "size="+strconv.FormatInt(t.Bytes, 10))
		}
		w.Mounts = append(w.Mounts, wireMount{Type: "tmpfs", Source: "tmpfs", Destination: t.Target, Options: opts})
	}
	for _, m := range s.Secrets {
		w.Secrets = append(w.Secrets, wireSecret{Source: m.Secret, Target: m.Target, Mode: secretMode})
	}
	for _, m := range s.Mounts {
		w.Mounts = append(w.Mounts, wireMount{Type: "bind", Source: m.Source, Destination: m.Target, Options: bindOptions(m)})
	}
	if s.MemoryBytes > 0 {
		w.Resources.Memory = &wireMemory{Limit: s.MemoryBytes, Swap: s.MemoryBytes}
		if s.Swap {
			w.Resources.Memory.Swap *= 2
		}
	}
	if s.NanoCPUs > 0 || s.CPUShares > 0 {
		w.Resources.CPU = &wireCPU{Shares: uint64(max(0, s.CPUShares))}
		if s.NanoCPUs > 0 {
			// Below 1,000 µs the kernel refuses a quota.
			w.Resources.CPU.Quota, w.Resources.CPU.Period = max(1000, s.NanoCPUs*cpuPeriod/1e9), cpuPeriod
		}
	}
	if s.PidsLimit != 0 {
		w.Resources.Pids = &wirePids{Limit: max(-1, s.PidsLimit)}
	}
	return w
}

// relax takes away what the caller has switched off. The engine refuses a name
// and a size of /dev/shm where they would be the host's.
func (w *wireSpec) relax(s engine.ContainerSpec) {
	if s.SeccompUnconfined {
		w.Seccomp = "unconfined"
	}
	if s.Unmasked {
		w.Unmask = []string{"ALL"}
	}
	if s.HostIPC {
		w.IpcNS.Mode, w.ShmSize = "host", 0
	}
	if s.HostUTS {
		w.UtsNS.Mode, w.Hostname = "host", ""
	}
	if s.HostCgroup {
		w.CgroupNS.Mode = "host"
	}
}

func bindOptions(m engine.Mount) []string {
	opts := []string{"rbind", "rprivate", "nosuid", "nodev", "rw"}
	if m.ReadOnly {
		opts[4] = "ro"
	}
	if m.NoExec {
		opts = append(opts, "noexec")
	}
	return opts
}

// rlimits are always given where this process may not raise its own limits:
// the engine's defaults are above them, and it would fail at start.
func (c *Client) rlimits(s engine.ContainerSpec) []wireRlimit {
	var list []wireRlimit
	for _, l := range []struct {
		name string
		want int64
		hard uint64
	}{{"nofile", s.Nofile, c.host.Nofile}, {"nproc", s.Nproc, c.host.Nproc}} {
		value := uint64(max(0, l.want))
		if !c.host.SysResource && (value == 0 || value > l.hard) {
			value = l.hard
		}
		if value > 0 {
			list = append(list, wireRlimit{Type: l.name, Soft: value, Hard: value})
		}
	}
	return list
}
