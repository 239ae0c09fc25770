package sandbox

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/shim"
)

func TestSecretsAreJudged(t *testing.T) {
	const at = shim.SecretsDir + "/0"
	good := shim.SecretFact{File: "0", Mode: 0o400, Read: true}
	with := func(change func(*shim.SecretFact)) []shim.SecretFact {
		f := good
		change(&f)
		return []shim.SecretFact{f}
	}
	asked := []engine.SecretMount{{Secret: "id", Target: at}}
	mounted := map[string]shim.MountFact{at: {Target: at, RO: true}}
	for name, c := range map[string]struct {
		asked   []engine.SecretMount
		mounted map[string]shim.MountFact
		facts   []shim.SecretFact
		misses  string
	}{
		"as asked":     {asked, mounted, []shim.SecretFact{good}, ""},
		"none":         {nil, nil, nil, ""},
		"missing":      {asked, nil, nil, "no secret is mounted"},
		"writable":     {asked, map[string]shim.MountFact{at: {Target: at}}, []shim.SecretFact{good}, "read-only"},
		"others' mode": {asked, mounted, with(func(f *shim.SecretFact) { f.Mode = 0o444 }), "root alone"},
		"a directory":  {asked, mounted, with(func(f *shim.SecretFact) { f.Mode |= fs.ModeDir }), "root alone"},
		"the agent's":  {asked, mounted, with(func(f *shim.SecretFact) { f.UID = 1000 }), "root alone"},
		"unreadable":   {asked, mounted, with(func(f *shim.SecretFact) { f.Read = false }), "root alone"},
		"readable":     {asked, mounted, with(func(f *shim.SecretFact) { f.Agent = true }), "the agent can read"},
		"not asked":    {nil, mounted, []shim.SecretFact{good}, "nobody has asked"},
	} {
		j := judgement{spec: engine.ContainerSpec{Secrets: c.asked}, facts: shim.Facts{Secrets: c.facts}}
		j.secrets(c.mounted)
		if got := strings.Join(j.missing, "; "); (got == "") != (c.misses == "") || !strings.Contains(got, c.misses) {
			t.Errorf("%s: %q, want %q", name, got, c.misses)
		}
	}
}
