package policy

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func testConfig() Config {
	return Config{
		Image: "localhost/agent:1", Memory: 512 << 20, NanoCPUs: 1e9, Timeout: 30 * time.Minute,
		AllowedVolumes: []string{"/data", "/home/dev"}, Home: "/home/agent", Protected: []string{"/home/dev/.local/share/stromboli"},
	}
}

func ptr[T any](v T) *T { return &v }

func TestDefaults(t *testing.T) {
	got, err := Check(stromboli.RunSpec{Prompt: "hi"}, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	want := Plan{
		Network: stromboli.Network{Mode: stromboli.NetworkOpen},
		Prompt:  "hi", Workdir: "/workspace", Image: "localhost/agent:1", WorkdirMount: -1,
		MemoryBytes: 512 << 20, NanoCPUs: 1e9, SandboxTimeout: 30 * time.Minute, HooksTimeout: 5 * time.Minute,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestPlan(t *testing.T) {
	got, err := Check(stromboli.RunSpec{
		Prompt: strings.Repeat("x", 1<<20), Workdir: "/src//app/./sub/", OnDisconnect: stromboli.OnDisconnectCancel,
		Metadata: map[string]string{"team.name/x": "été"},
		Claude:   stromboli.ClaudeOptions{Timeout: stromboli.Duration(time.Minute)},
		Podman: stromboli.PodmanOptions{
			Image: "registry.example:5000/Team/img@sha256:abc", Memory: "1.5G", CPUs: "0.5", CPUShares: ptr(2),
			Timeout: stromboli.Duration(time.Hour), Volumes: []string{"/data/cache:/src/app/cache:ro", "/data/x/:/src/app/", "/data:/data2:rw,rw", "/data:/srcother"},
		},
	}, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	got.Prompt = ""
	want := Plan{
		Network: stromboli.Network{Mode: stromboli.NetworkOpen},
		Workdir: "/src/app/sub", Image: "registry.example:5000/Team/img@sha256:abc",
		Mounts: []Mount{
			{Source: "/data/cache", Target: "/src/app/cache", ReadOnly: true, Field: "podman.volumes[0]", Within: "/src/app"},
			{Source: "/data/x", Target: "/src/app", Field: "podman.volumes[1]"},
			{Source: "/data", Target: "/data2", Field: "podman.volumes[2]"},
			{Source: "/data", Target: "/srcother", Field: "podman.volumes[3]"},
		},
		WorkdirMount: 1, MemoryBytes: 3 << 29, NanoCPUs: 5e8, CPUShares: 2, ClaudeTimeout: time.Minute, SandboxTimeout: time.Hour, HooksTimeout: 5 * time.Minute,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestTimeouts(t *testing.T) {
	for _, c := range []struct{ agent, sandbox, want time.Duration }{
		{0, 0, 30 * time.Minute},
		{time.Minute, 0, 30 * time.Minute},
		{2 * time.Hour, 0, 150 * time.Minute},
		{2 * time.Hour, time.Minute, time.Minute},
	} {
		p, err := Check(stromboli.RunSpec{
			Prompt: "x", Claude: stromboli.ClaudeOptions{Timeout: stromboli.Duration(c.agent)}, Podman: stromboli.PodmanOptions{Timeout: stromboli.Duration(c.sandbox)},
		}, testConfig())
		if err != nil || p.ClaudeTimeout != c.agent || p.SandboxTimeout != c.want {
			t.Errorf("%+v: got %s %s %v", c, p.ClaudeTimeout, p.SandboxTimeout, err)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	type spec = stromboli.RunSpec
	pod := func(o stromboli.PodmanOptions) spec { return spec{Prompt: "x", Podman: o} }
	vol := func(v ...string) spec { return pod(stromboli.PodmanOptions{Volumes: v}) }
	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprint(i)] = ""
	}
	for _, c := range []struct {
		field, says string
		s           spec
	}{
		{"prompt", "required", spec{}},
		{"prompt", "blank", spec{Prompt: " \n\t\u00a0"}},
		{"prompt", "UTF-8", spec{Prompt: "\xff"}},
		{"on_disconnect", "continue, cancel", spec{Prompt: "x", OnDisconnect: "explode"}},
		{"metadata", "33", spec{Prompt: "x", Metadata: many}},
		{"metadata", "bytes", spec{Prompt: "x", Metadata: map[string]string{"": "x"}}},
		{"metadata", "control", spec{Prompt: "x", Metadata: map[string]string{"a\nb": "x"}}},
		{"metadata.a", "bytes", spec{Prompt: "x", Metadata: map[string]string{"a": strings.Repeat("x", 2000)}}},
		{"metadata.a", "text", spec{Prompt: "x", Metadata: map[string]string{"a": "\x00"}}},
		{"workdir", "not absolute", spec{Prompt: "x", Workdir: "src"}},
		{"workdir", "not absolute", spec{Prompt: "x", Workdir: "./src"}},
		{"workdir", `\"..\"`, spec{Prompt: "x", Workdir: "/src/../etc"}},
		{"workdir", "control", spec{Prompt: "x", Workdir: "/src\x00"}},
		{"workdir", "control", spec{Prompt: "x", Workdir: "/src\n"}},
		{"workdir", "control", spec{Prompt: "x", Workdir: "/src\xff"}},
		{"workdir", "longer", spec{Prompt: "x", Workdir: "/" + strings.Repeat("x", 2000)}},
		{"workdir", "name of more than 255", spec{Prompt: "x", Workdir: "/src/" + strings.Repeat("x", 256)}},
		{"workdir", "own", spec{Prompt: "x", Workdir: "/proc/1/root"}},
		{"workdir", "own", spec{Prompt: "x", Workdir: "/run/stromboli"}},
		{"podman.image", "dash", pod(stromboli.PodmanOptions{Image: "--privileged"})},
		{"podman.image", "not an image", pod(stromboli.PodmanOptions{Image: "a b"})},
		{"podman.image", "not an image", pod(stromboli.PodmanOptions{Image: "../x"})},
		{"podman.image", "not an image", pod(stromboli.PodmanOptions{Image: "/x"})},
		{"podman.image", "longer", pod(stromboli.PodmanOptions{Image: strings.Repeat("x", 600)})},
		{"podman.memory", "not a size", pod(stromboli.PodmanOptions{Memory: "-1"})},
		{"podman.memory", "not a size", pod(stromboli.PodmanOptions{Memory: "lots"})},
		{"podman.memory", "range", pod(stromboli.PodmanOptions{Memory: "0"})},
		{"podman.memory", "range", pod(stromboli.PodmanOptions{Memory: "1k"})},
		{"podman.memory", "range", pod(stromboli.PodmanOptions{Memory: "99999t"})},
		{"podman.memory", "too large", pod(stromboli.PodmanOptions{Memory: "99999999999999t"})},
		{"podman.cpus", "decimal", pod(stromboli.PodmanOptions{CPUs: "-1"})},
		{"podman.cpus", "decimal", pod(stromboli.PodmanOptions{CPUs: "NaN"})},
		{"podman.cpus", "decimal", pod(stromboli.PodmanOptions{CPUs: "1e3"})},
		{"podman.cpus", "range", pod(stromboli.PodmanOptions{CPUs: "0"})},
		{"podman.cpus", "range", pod(stromboli.PodmanOptions{CPUs: "1000000"})},
		{"podman.cpu_shares", "between", pod(stromboli.PodmanOptions{CPUShares: ptr(0)})},
		{"podman.cpu_shares", "between", pod(stromboli.PodmanOptions{CPUShares: ptr(-5)})},
		{"podman.cpu_shares", "between", pod(stromboli.PodmanOptions{CPUShares: ptr(math.MaxInt)})},
		{"podman.timeout", "negative", pod(stromboli.PodmanOptions{Timeout: -1})},
		{"podman.timeout", "too long", pod(stromboli.PodmanOptions{Timeout: math.MaxInt64})},
		{"claude.timeout", "negative", spec{Prompt: "x", Claude: stromboli.ClaudeOptions{Timeout: stromboli.Duration(-time.Second)}}},
		{"podman.volumes", "10000 entries", vol(make([]string, 10_000)...)},
		{"podman.volumes[0]", "host:container", vol("")},
		{"podman.volumes[0]", "host:container", vol("/data")},
		{"podman.volumes[0]", "host:container", vol("/data:/a:ro:x")},
		{"podman.volumes[1]", "not absolute", vol("/data:/a", "data:/b")},
		{"podman.volumes[0]", "not absolute", vol("/data:a")},
		{"podman.volumes[0]", "empty", vol(":/a")},
		{"podman.volumes[0]", "empty", vol("/data:")},
		{"podman.volumes[0]", `\"..\"`, vol("/data/../etc:/a")},
		{"podman.volumes[0]", `\"..\"`, vol("/data:/a/..")},
		{"podman.volumes[0]", "control", vol("/data/\x00:/a")},
		{"podman.volumes[0]", "control", vol("/data:/a\n")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:U")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:ro,exec")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:suid")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:RO")},
		{"podman.volumes[0]", "options are ro, rw, noexec", vol("/data:/a:ro,,z")},
		{"podman.volumes[0]", "exclude", vol("/data:/a:ro,rw")},
		{"podman.volumes[0]", "exclude", vol("/data:/a:noexec,z,ro,Z")},
		{"podman.volumes[0]", "longer", vol("/data/" + strings.Repeat("x", 5000) + ":/a")},
		{"podman.volumes[0]", "name of more than 255", vol("/data:/" + strings.Repeat("x", 256))},
		{"podman.volumes[0]", "STROMBOLI_AGENT_ALLOWED_VOLUMES", vol("/etc:/a")},
		{"podman.volumes[0]", "STROMBOLI_AGENT_ALLOWED_VOLUMES", vol("/database:/a")},
		{"podman.volumes[0]", "STROMBOLI_AGENT_ALLOWED_VOLUMES", vol("/:/a")},
		{"podman.volumes[0]", "server's own", vol("/home/dev:/a")},
		{"podman.volumes[0]", "server's own", vol("/home/dev/.local/share/stromboli/blobs:/a")},
		{"podman.volumes[1]", "another volume", vol("/data:/a", "/data/x:/a/")},
		{"podman.volumes[0]", "/home/agent", vol("/data:/home")},
		{"podman.volumes[0]", "/home/agent", vol("/data:/home/agent/.claude")},
		{"podman.volumes[0]", "/run/stromboli", vol("/data:/run")},
		{"podman.volumes[0]", "/opt/stromboli", vol("/data:/opt/stromboli/cli")},
		{"podman.volumes[0]", "/proc", vol("/data:/proc/sys")},
		{"podman.volumes[0]", "/sys", vol("/data:/sys")},
		{"podman.volumes[0]", "/dev", vol("/data:/dev/shm")},
		{"podman.volumes[0]", "/etc/passwd", vol("/data:/etc/passwd")},
		{"podman.volumes[0]", "refused", vol("/data:/")},
		{"podman.volumes[0]", "refused", vol("/data:/etc")},
		{"podman.volumes[0]", "whole", vol("/data:/usr/")},
		{"podman.volumes[0]", "whole", vol("/data:/bin")},
		{"podman.volumes[0]", "whole", vol("/data:/lib")},
		{"podman.volumes[0]", "whole", vol("/data:/tmp")},
	} {
		_, err := Check(c.s, testConfig())
		e, ok := errors.AsType[*stromboli.Error](err)
		if !ok {
			t.Errorf("%s, %s: got %v", c.field, c.says, err)
			continue
		}
		says := strings.ReplaceAll(c.says, `\"`, `"`)
		if e.Code != stromboli.Invalid || len(e.Details) != 1 || e.Details[0].Field != c.field || !strings.Contains(e.Message, says) {
			t.Errorf("%s, %s: got %q %v", c.field, c.says, e.Message, e.Details)
		}
		if strings.ContainsAny(e.Message, "\n\x00") || len(e.Message) > 400 {
			t.Errorf("%s: the message is no clean sentence: %q", c.field, e.Message)
		}
	}
}

func TestVolumeOptions(t *testing.T) {
	for options, want := range map[string]Mount{
		"ro":                        {ReadOnly: true},
		"rw":                        {},
		"nosuid,nodev":              {},
		"noexec":                    {NoExec: true},
		"z":                         {Label: "z"},
		"Z,Z":                       {Label: "Z"},
		"nodev,noexec,nosuid,ro,z":  {ReadOnly: true, NoExec: true, Label: "z"},
		"rw,Z,noexec,noexec,nosuid": {NoExec: true, Label: "Z"},
	} {
		want.Source, want.Target = "/data", "/a"
		if got, err := ParseVolume("/data:/a:" + options); err != nil || got != want {
			t.Errorf("%s: %+v, %v", options, got, err)
		}
	}
}

// A workdir that may be a directory of the host is mounted as a volume would
// be: where one is allowed, and where no volume is.
func TestHostWorkdir(t *testing.T) {
	for _, c := range []struct {
		workdir string
		volumes []string
		want    bool
	}{
		{"/data/app", nil, true},
		{"/data//app/.", nil, true},
		{"/data", nil, true},
		{"/data/app", []string{"/data/x:/data/app/cache"}, true},
		{"/data/app", []string{"/data/x:/data"}, false},
		{"/data/app", []string{"/data/x:/data/app"}, false},
		{"", nil, false},
		{"/workspace", nil, false},
		{"/etc", nil, false},
		{"/database", nil, false},
		{"/home/dev", nil, false},                              // holds the server's own files
		{"/home/dev/.local/share/stromboli/blobs", nil, false}, // is one
		{"/home/agent/x", nil, false},
	} {
		p, err := Check(stromboli.RunSpec{Prompt: "x", Workdir: c.workdir, Podman: stromboli.PodmanOptions{Volumes: c.volumes}}, testConfig())
		if err != nil || (p.HostWorkdir != nil) != c.want {
			t.Errorf("%s %v: %+v, %v", c.workdir, c.volumes, p.HostWorkdir, err)
			continue
		}
		if w := p.HostWorkdir; w != nil && (w.Source != p.Workdir || w.Target != p.Workdir || w.Field != "workdir") {
			t.Errorf("%s: %+v", c.workdir, w)
		}
	}
	all := testConfig()
	all.AllowAllVolumes = true
	for dir, want := range map[string]bool{"/srv/x": true, "/": false, "/usr": false, "/home/agent": false, "/home": false, "/opt/stromboli/x": false} {
		p, err := Check(stromboli.RunSpec{Prompt: "x", Workdir: dir}, all)
		if (p.HostWorkdir != nil) != want {
			t.Errorf("%s: %+v, %v", dir, p.HostWorkdir, err)
		}
	}
}

func TestVolumesAllowed(t *testing.T) {
	spec := stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Volumes: []string{"/srv/a:/etc/ssl", "/srv/b:/usr/local/b", "/srv/c:/var/lib/c"}}}
	c := testConfig()
	c.AllowAllVolumes = true
	if p, err := Check(spec, c); err != nil || len(p.Mounts) != 3 {
		t.Errorf("all allowed: %v %v", p.Mounts, err)
	}
	c = Config{AllowedVolumes: []string{"/"}}
	if _, err := Check(spec, c); err != nil {
		t.Errorf("below /: %v", err)
	}
	if _, err := Check(spec, Config{}); err == nil || !strings.Contains(err.Error(), "STROMBOLI_AGENT_ALLOWED_VOLUMES") {
		t.Errorf("nothing allowed: %v", err)
	}
}

func TestThousandVolumes(t *testing.T) {
	var volumes []string
	for i := range maxVolumes {
		volumes = append(volumes, fmt.Sprintf("/data/%d:/mnt%s", i, strings.Repeat("/d", i%200)+fmt.Sprint("/", i)))
	}
	if p, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Volumes: volumes}}, testConfig()); err != nil || len(p.Mounts) != maxVolumes {
		t.Errorf("%d mounts, %v", len(p.Mounts), err)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "1024b": 1024, "512m": 512 << 20, "512M": 512 << 20, "2g": 2 << 30, "2GB": 2 << 30, "2GiB": 2 << 30, "0.5k": 512, "1t": 1 << 40,
		"": -1, "m": -1, "-1m": -1, "+1m": -1, "1 m": -1, "1mm": -1, "1x": -1, "1.m": -1, ".5m": -1, "1.2.3m": -1, "0x10": -1, "1e3": -1, "１m": -1,
		"1i": -1, "1ib": -1, "1bb": -1, "9999999999999999t": -1, strings.Repeat("9", 40): -1, "1m\n": -1,
	} {
		got, err := ParseSize(s)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: got %d %v, want %d", s, got, err, want)
		}
	}
}
