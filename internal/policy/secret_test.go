package policy

import (
	"strings"
	"testing"
)

func TestSecretPatterns(t *testing.T) {
	t.Parallel()
	p, err := ParseSecretPatterns([]string{"ci-*", " exact ", "team-a/*", "*/shared.key"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tenant, name string
		ok           bool
	}{
		{"default", "ci-token", true},
		{"default", "exact", true},
		{"default", "exact2", false},
		{"default", "xci-token", false},
		{"team-a", "ci-token", true},
		{"team-b", "ci-token", false},
		{"team-b", "exact", false},
		{"team-b", "shared.key", true},
		{"default", "shared.key", true},
		{"team-b", "sharedxkey", false},
		{"team-a", "", true}, // no secret's name: refused before
	} {
		if p.Allow(c.tenant, c.name) != c.ok {
			t.Errorf("%s/%s: %v", c.tenant, c.name, !c.ok)
		}
	}
	if SecretPatterns(nil).Allow("default", "x") {
		t.Error("no pattern permits something")
	}
	for _, bad := range []string{"", "/", "a/", "/a", "a/b/c", "[a]", "a?", `a\`, "engine:a", "a b", strings.Repeat("x", 254)} {
		if _, err := ParseSecretPatterns([]string{"ok", bad}); err == nil || !strings.Contains(err.Error(), "STROMBOLI_SECRETS_ENGINE_NAMES") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
