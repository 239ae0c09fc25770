package policy

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// Bounds of hooks.
const (
	maxHooks     = 100      // of one list
	maxHook      = 64 << 10 // bytes of one command
	hooksTimeout = 5 * time.Minute
	longestHooks = time.Hour
)

// hooks checks the form of a run's hooks and returns how long they may take.
func hooks(l stromboli.Lifecycle) (time.Duration, error) {
	const field = "podman.lifecycle."
	for _, list := range []struct {
		name     string
		commands []string
	}{{stromboli.HookOnCreate, l.OnCreateCommand}, {stromboli.HookPostCreate, l.PostCreate}, {stromboli.HookPostStart, l.PostStart}} {
		if len(list.commands) > maxHooks {
			return 0, stromboli.FieldError(field+list.name, "has %d entries, at most %d are possible", len(list.commands), maxHooks)
		}
		for i, command := range list.commands {
			name := fmt.Sprintf("%s%s[%d]", field, list.name, i)
			switch {
			case strings.TrimSpace(command) == "":
				return 0, stromboli.FieldError(name, "is blank; each element is one complete shell command")
			case len(command) > maxHook:
				return 0, stromboli.FieldError(name, "is %d bytes long, at most %d are possible", len(command), maxHook)
			case !utf8.ValidString(command) || strings.Contains(command, "\x00"):
				return 0, stromboli.FieldError(name, "is not valid text")
			}
		}
	}
	d := time.Duration(l.HooksTimeout)
	switch {
	case d < 0:
		return 0, stromboli.FieldError(field+"hooks_timeout", "%s is negative", d)
	case d > longestHooks:
		return 0, stromboli.FieldError(field+"hooks_timeout", "%s is too long; at most %s are possible", d, longestHooks)
	case d == 0:
		return hooksTimeout, nil
	}
	return d, nil
}
