package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	_ "time/tzdata" // the host may know no time zones

	"github.com/caarlos0/env/v11"
)

const zoneinfoDir = "/usr/share/zoneinfo"

// timezone turns STROMBOLI_AGENT_TIMEZONE into the name of a time zone and what
// the host knows of it, so that it also works in images that know none.
// Without the setting both are empty: the image decides.
func timezone(setting string, environ []string) (name string, data []byte, err error) {
	const variable = "STROMBOLI_AGENT_TIMEZONE"
	if name = setting; name == "local" {
		if name = localZone(environ); name == "" {
			return "", nil, fmt.Errorf("%s: this host doesn't say which time zone it is in; name one, such as Europe/Paris", variable)
		}
	}
	if name == "" {
		return "", nil, nil
	}
	// LoadLocation refuses names that lead out of the directory.
	if _, err := time.LoadLocation(name); err != nil || name == "Local" {
		return "", nil, fmt.Errorf("%s: %q is not a time zone such as Europe/Paris, nor local for this host's", variable, setting)
	}
	data, err = os.ReadFile(filepath.Join(zoneinfoDir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", nil, fmt.Errorf("%s: %w", variable, err)
	}
	return name, data, nil
}

// localZone is the host's time zone by its name, or empty.
func localZone(environ []string) string {
	if tz := strings.TrimPrefix(env.ToMap(environ)["TZ"], ":"); tz != "" && !filepath.IsAbs(tz) {
		return tz
	}
	if target, err := filepath.EvalSymlinks("/etc/localtime"); err == nil {
		if _, name, ok := strings.Cut(target, "zoneinfo/"); ok {
			return name
		}
	}
	b, err := os.ReadFile("/etc/timezone")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
