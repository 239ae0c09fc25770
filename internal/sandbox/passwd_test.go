package sandbox

import (
	"strings"
	"testing"
)

func TestPasswd(t *testing.T) {
	const root = "root:x:0:0:root:/root:/bin/bash\n"
	for name, c := range map[string]struct{ image, want string }{
		"none":       {"", "agent:x:1000:1001:Stromboli agent:/home/agent:/bin/bash\n"},
		"added":      {root, root + "agent:x:1000:1001:Stromboli agent:/home/agent:/bin/bash\n"},
		"known uid":  {root + "node:x:1000:1000::/home/node:/bin/sh\n", root + "node:x:1000:1000::/home/agent:/bin/sh\n"},
		"taken name": {"agent:x:7:7::/:/bin/sh\n", "agent:x:7:7::/:/bin/sh\nagent2:x:1000:1001:Stromboli agent:/home/agent:/bin/bash\n"},
		"no newline": {"a:x:7:7::/:/bin/sh", "a:x:7:7::/:/bin/sh\nagent:x:1000:1001:Stromboli agent:/home/agent:/bin/bash\n"},
		"nonsense":   {"+\n::1000\r\n\n", "+\n::1000\nagent:x:1000:1001:Stromboli agent:/home/agent:/bin/bash\n"},
	} {
		if got := passwdFor(c.image, 1000, 1001, HomePath); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestGroup(t *testing.T) {
	for name, c := range map[string]struct{ image, want string }{
		"added":      {"root:x:0:\n", "root:x:0:\nagent:x:1001:\n"},
		"known gid":  {"root:x:0:\nusers:x:1001:\n", "root:x:0:\nusers:x:1001:\n"},
		"taken name": {"agent:x:7:\n", "agent:x:7:\nagent2:x:1001:\n"},
	} {
		if got := groupFor(c.image, 1001); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\n", 1000)
	f.Add("a:b:1000:c:d:e:f", 1000)
	f.Fuzz(func(t *testing.T, image string, uid int) {
		got := passwdFor(image, uid, uid, HomePath)
		if !strings.Contains(got, ":"+HomePath+":") || !strings.HasSuffix(got, "\n") {
			t.Errorf("the agent is missing in %q", got)
		}
	})
}

func TestMappedRoot(t *testing.T) {
	needRoot(t)
	if uid, err := mappedRoot(1); err != nil || uid != 0 {
		t.Errorf("%d, %v", uid, err)
	}
	if _, err := mappedRoot(1 << 30); err == nil {
		t.Error("no error for a process that isn't there")
	}
}
