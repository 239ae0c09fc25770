package config

import "testing"

func TestPlaces(t *testing.T) {
	const data, sessions = "STROMBOLI_DATA_DIR=/d", "STROMBOLI_AGENT_SESSIONS_DIR=/s"
	for _, c := range []struct {
		name                    string
		environ                 []string
		sessions, shared, cache string
		paths                   map[string]string
	}{
		{"on the host", []string{data}, "/d/sessions", "/d", "/home/u/.cache/stromboli", map[string]string{"/d/sb/x": "/d/sb/x", "/else": "/else"}},
		{"sessions elsewhere", []string{data, sessions}, "/s", "/d", "/home/u/.cache/stromboli", map[string]string{"/s/x": "/s/x"}},
		{
			"everything shared",
			[]string{data, "STROMBOLI_DATA_HOST_DIR=/host/d/"},
			"/d/sessions", "/d", "/d/cache",
			map[string]string{"/d": "/host/d", "/d/sb/x/run": "/host/d/sb/x/run", "/data": "/data", "/d/sessions/1/home": "/host/d/sessions/1/home"},
		},
		{
			"only sessions shared",
			[]string{data, sessions, "STROMBOLI_AGENT_SESSIONS_HOST_DIR=/host/s"},
			"/s", "/s/.stromboli", "/s/.stromboli/cache",
			map[string]string{"/s/1/home": "/host/s/1/home", "/s/.stromboli/sb/x": "/host/s/.stromboli/sb/x", "/vol": "/vol", "/d/x": "/d/x"},
		},
		{
			"both shared",
			[]string{data, sessions, "STROMBOLI_DATA_HOST_DIR=/hd", "STROMBOLI_AGENT_SESSIONS_HOST_DIR=/hs", "STROMBOLI_CACHE_DIR=/c"},
			"/s", "/d", "/c",
			map[string]string{"/s/1": "/hs/1", "/d/sb": "/hd/sb", "/c/cli": "/c/cli"},
		},
	} {
		got := load(t, c.environ...)
		if got.SessionsDir() != c.sessions || got.SharedDir() != c.shared || got.CacheDir != c.cache {
			t.Errorf("%s: sessions %s, shared %s, cache %s", c.name, got.SessionsDir(), got.SharedDir(), got.CacheDir)
		}
		for from, want := range c.paths {
			if to := got.HostPath(from); to != want {
				t.Errorf("%s: %s is %s on the host, want %s", c.name, from, to, want)
			}
		}
	}
	if _, err := Load([]string{"HOME=/h", "STROMBOLI_DATA_HOST_DIR=relative"}); err == nil {
		t.Error("a relative path was taken")
	}
}
