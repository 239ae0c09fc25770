package sandbox

import (
	"testing"

	"github.com/tomblancdev/stromboli/internal/shim"
)

func TestCallerInContainer(t *testing.T) {
	for _, c := range []struct {
		name     string
		text     string
		rootless bool
		agent    int
		want     shim.PeerRule
		fails    bool
	}{
		{"rootful", "         0          0 4294967295\n", false, 1000, shim.PeerRule{UID: 0}, false},
		{"rootful, server in a namespace that has the agent", "0 1000 65536\n", false, 1000, shim.PeerRule{UID: 0, Not: true}, false},
		{"rootful, server in a namespace of strangers", "0 2147483648 1024\n", false, 1000, shim.PeerRule{}, true},
		{"rootless, keep-id", "0 1 1001\n1001 0 1\n1002 1002 64535\n", true, 1000, shim.PeerRule{UID: 0}, false},
		{"rootless, default", "0 1001 1\n1 100000 65536\n", true, 1000, shim.PeerRule{UID: 1}, false},
		{"rootless, auto", "0 1 1024\n", true, 1000, shim.PeerRule{UID: 0}, false},
		{"rootless, the user alone", "0 0 1\n", true, 1000, shim.PeerRule{UID: 0, Not: true}, false},
		{"rootless, the user alone in the engine's namespace", "0 1001 1\n", true, 1000, shim.PeerRule{UID: 0, Not: true}, false},
		{"nothing", "", true, 1000, shim.PeerRule{}, true},
	} {
		m, err := parseIDMap(c.text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.caller(c.rootless, c.agent)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
	if _, err := parseIDMap("0 x 1\n"); err == nil {
		t.Error("a map of letters was understood")
	}
}

func TestMountOf(t *testing.T) {
	const info = "1 0 0:1 / / rw - overlay overlay rw\n" +
		"2 1 8:1 /home/u/my\\040work /home/u/my\\040work rw master:1 - ext4 /dev/sda1 rw\n" +
		"3 2 8:1 /x /home/u/my\\040work/deep rw - ext4 /dev/sda1 rw\n" +
		"4 1 0:5 / /proc rw - proc proc rw\nshort\n"
	for path, want := range map[string]string{
		"/": "/", "/tmp": "/", "/home/u": "/", "/home/u/my work": "/home/u/my work", "/home/u/my work/a/b": "/home/u/my work",
		"/home/u/my workshop": "/", "/home/u/my work/deep/er": "/home/u/my work/deep", "/proc/1": "/proc",
	} {
		if got := mountOf(info, path); got != want {
			t.Errorf("%s lies on %s, want %s", path, got, want)
		}
	}
}
