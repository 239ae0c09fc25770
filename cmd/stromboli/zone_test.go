package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTimezone(t *testing.T) {
	for _, c := range []struct{ setting, env, name string }{
		{"", "TZ=Asia/Tokyo", ""}, {"Asia/Tokyo", "", "Asia/Tokyo"}, {"UTC", "", "UTC"}, {"local", "TZ=:Asia/Tokyo", "Asia/Tokyo"},
	} {
		name, data, err := timezone(c.setting, []string{c.env})
		if err != nil || name != c.name {
			t.Errorf("%q: %q, %v", c.setting, name, err)
		}
		if _, err := os.Stat(filepath.Join(zoneinfoDir, name)); name != "" && err == nil && !strings.HasPrefix(string(data), "TZif") {
			t.Errorf("%q: the zone's file begins with %.4q", c.setting, data)
		}
	}
	for _, setting := range []string{"Mars/Olympus", "../../../etc/passwd", "/etc/localtime", "Local", "Asia", "-1", " ", "Asia/Tokyo "} {
		if name, _, err := timezone(setting, nil); err == nil || !strings.Contains(err.Error(), "STROMBOLI_AGENT_TIMEZONE") {
			t.Errorf("%q is %q, %v", setting, name, err)
		}
	}
	if name, _, err := timezone("local", []string{"TZ=nonsense"}); err == nil {
		t.Errorf("nonsense is %q", name)
	}
}
