package policy

import (
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/data:/a", "/data:/a:ro", "a:b:c:d", "/x/../y:/z", "/data/\x00:/a", ":::", "/:/:rw"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseVolume(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("message %q", err)
			}
			return
		}
		for _, p := range []string{m.Source, m.Target} {
			if !strings.HasPrefix(p, "/") || strings.Contains(p+"/", "/../") || strings.ContainsAny(p, "\x00\n:") || len(p) > maxPath {
				t.Fatalf("%q gave %q", s, p)
			}
		}
		again, err := ParseVolume(m.Source + ":" + m.Target)
		again.ReadOnly, again.NoExec, again.Label = m.ReadOnly, m.NoExec, m.Label
		if err != nil || again != m {
			t.Fatalf("%q is not stable: %v %v %v", s, m, again, err)
		}
		plan, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Volumes: []string{s}}}, testConfig())
		if err == nil && !within(plan.Mounts[0].Source, "/data") && !within(plan.Mounts[0].Source, "/home/dev") {
			t.Fatalf("%q is outside", s)
		}
	})
}

// FuzzPaths: whatever is accepted as a path of the sandbox is one, means the same
// when it is asked again, and is none of the server's own.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{
		"/workspace", "/", "//a//b/", "/a/../b", "/run/stromboli/x", "/run/./stromboli", "relative", "/a\x00b", "/a\u2028b", "/é", "-x", "/proc/self/root", "/tmp/.",
	} {
		f.Add(s)
	}
	own := append(reserved(), "/home/agent")
	f.Fuzz(func(t *testing.T, s string) {
		dir, err := workdir(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("message %q", err)
			}
		} else {
			if !strings.HasPrefix(dir, "/") || strings.Contains(dir+"/", "/../") || strings.ContainsFunc(dir, notPrintable) || len(dir) > maxPath {
				t.Fatalf("%q gave %q", s, dir)
			}
			if again, err := workdir(dir); err != nil || again != dir {
				t.Fatalf("%q gave %q, then %q, %v", s, dir, again, err)
			}
			for _, r := range reserved() {
				if within(dir, r) {
					t.Fatalf("%q is in %s", s, r)
				}
			}
		}
		plan, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Volumes: []string{"/data:" + s}}}, testConfig())
		if err != nil {
			return
		}
		target := plan.Mounts[0].Target
		for _, r := range own {
			if within(target, r) || within(r, target) {
				t.Fatalf("%q is mounted at %q, over %s", s, target, r)
			}
		}
	})
}

// FuzzImage: what is accepted as an image's name can't be taken for an option,
// a path or a transport.
func FuzzImage(f *testing.F) {
	for _, s := range []string{"debian", "localhost/a/b:1", "a@sha256:00", "--privileged", "../x", "/x", "a//b", "a b", "é", "docker://x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := image(s, "default")
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("message %q", err)
			}
			return
		}
		if s == "" {
			return
		}
		if name != s || strings.HasPrefix(name, "-") || strings.HasPrefix(name, "/") || strings.Contains(name, "..") && strings.Contains(name+"/", "/../") ||
			strings.Contains(name, "//") || strings.ContainsAny(name, " \t\n\x00?#%\\") || len(name) > maxImage {
			t.Fatalf("%q was accepted", s)
		}
	})
}

func FuzzSizes(f *testing.F) {
	for _, s := range []string{"512m", "1.5g", "-1", "1e9", "0.5", "9999999999999999999t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Fatalf("%q is %d", s, n)
		}
		if n, err := ParseCPUs(s); err == nil && (n < MinNanoCPUs || n > MaxNanoCPUs) {
			t.Fatalf("%q is %d", s, n)
		}
		p, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Memory: s}}, testConfig())
		if err == nil && (p.MemoryBytes < MinMemory || p.MemoryBytes > MaxMemory) {
			t.Fatalf("%q gives %d bytes", s, p.MemoryBytes)
		}
	})
}

func FuzzTimeout(f *testing.F) {
	for _, s := range []string{`"30m"`, `"-1s"`, `"99999h"`, `5`, `""`, `"1h30m"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var d stromboli.Duration
		if d.UnmarshalJSON([]byte(s)) != nil {
			return
		}
		p, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Timeout: d}}, testConfig())
		if err == nil && (p.SandboxTimeout <= 0 || p.SandboxTimeout > longestTimeout) {
			t.Fatalf("%s gives %s", s, p.SandboxTimeout)
		}
	})
}
