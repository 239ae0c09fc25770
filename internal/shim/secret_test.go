package shim

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWithSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"0": "value one\n", "1": "x=y", "nul": "hidden\x00", "long": strings.Repeat("h", maxVariable), "full": strings.Repeat("h", maxVariable-len("AA=")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("0", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "dir"), 0o700)); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=/bin", "TOKEN=the image's", "LAST=1"}
	got, err := withSecrets(env, map[string]string{"TOKEN": "0", "B": "1"}, dir)
	if want := []string{"PATH=/bin", "LAST=1", "B=x=y", "TOKEN=value one\n"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if env[1] != "TOKEN=the image's" {
		t.Error("the caller's environment was changed")
	}
	if got, err := withSecrets(env, nil, dir); err != nil || !slices.Equal(got, env) {
		t.Errorf("without secrets: %q, %v", got, err)
	}
	if got, err := withSecrets(nil, map[string]string{"AA": "full"}, dir); err != nil || len(got) != 1 || len(got[0]) != maxVariable {
		t.Errorf("as long as can be: %v", err)
	}
	all := map[string]string{}
	for i := range 9 {
		all["A"+SecretFile(i)] = "full"
	}
	for name, secrets := range map[string]map[string]string{
		"together": all, "missing": {"A": "none"}, "outside": {"A": "../0"}, "nothing": {"A": ""}, "up": {"A": ".."}, "link": {"A": "link"}, "directory": {"A": "dir"},
		"nul": {"A": "nul"}, "long": {"A": "long"}, "no variable": {"A=B": "0"}, "no name": {"": "0"},
	} {
		got, err := withSecrets(env, secrets, dir)
		var remote *RemoteError
		if got != nil || !errors.As(err, &remote) || strings.Contains(err.Error(), "h") && strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: %d variables, %v", name, len(got), err)
		}
	}
}
