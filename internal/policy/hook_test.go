package policy

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func TestHooks(t *testing.T) {
	type life = stromboli.Lifecycle
	for _, c := range []struct {
		field, says string // empty: allowed
		l           life
		want        time.Duration
	}{
		{"", "", life{}, 5 * time.Minute},
		{"", "", life{OnCreateCommand: []string{"apt-get update && apt-get install -y jq", "x"}, PostCreate: []string{"npm ci"}, PostStart: []string{"a\nb"}, HooksTimeout: stromboli.Duration(time.Hour)}, time.Hour},
		{"on_create_command[1]", "blank", life{OnCreateCommand: []string{"x", " \n"}}, 0},
		{"post_create[0]", "blank", life{PostCreate: []string{""}}, 0},
		{"post_start[0]", "valid text", life{PostStart: []string{"a\x00"}}, 0},
		{"post_start[0]", "valid text", life{PostStart: []string{"\xff"}}, 0},
		{"post_start[0]", "bytes long", life{PostStart: []string{strings.Repeat("x", 1<<17)}}, 0},
		{"post_start", "101 entries", life{PostStart: make([]string, 101)}, 0},
		{"hooks_timeout", "negative", life{HooksTimeout: -1}, 0},
		{"hooks_timeout", "too long", life{HooksTimeout: stromboli.Duration(time.Hour + 1)}, 0},
	} {
		p, err := Check(stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Lifecycle: c.l}}, testConfig())
		if c.field == "" {
			if err != nil || p.HooksTimeout != c.want {
				t.Errorf("%+v: %s, %v", c.l, p.HooksTimeout, err)
			}
			continue
		}
		e, ok := errors.AsType[*stromboli.Error](err)
		if !ok || e.Code != stromboli.Invalid || len(e.Details) != 1 || e.Details[0].Field != "podman.lifecycle."+c.field || !strings.Contains(e.Message, c.says) {
			t.Errorf("%s, %s: %v", c.field, c.says, err)
		}
	}
}
