package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/config"
)

// writeFile puts a configuration file of mode 0600 into a directory.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stromboli.yaml")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// What is printed shows every setting's origin and no secret, and is a file
// that sets what holds.
func TestConfigPrint(t *testing.T) {
	path := writeFile(t, "api_tokens: [hunter2-hunter2-hunter2]\nagent:\n  allowed_volumes: [/srv/a, '/srv/#b']\n  image: 'x: y'\nresources: {timeout: 45m}\n")
	environ := []string{"HOME=/h", "STROMBOLI_QUEUE_MAX=7", "STROMBOLI_JWT_SECRET=hunter3"}
	code, out, errs := command(t.Context(), t, environ, "--config", path, "config", "print")
	if code != 0 || errs != "" {
		t.Fatalf("%d: %s", code, errs)
	}
	for _, want := range []string{
		"queue_max: 7 # STROMBOLI_QUEUE_MAX\n", "api_tokens: null # [hidden], " + path + ":1\n", "  timeout: 45m # " + path + ":5\n", "  secret: null # [hidden], STROMBOLI_JWT_SECRET\n",
		"  memory: 512m # default\n", "  signing_secret: null # default\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	first, err := config.Read(config.Source{Environ: environ, File: path})
	must(t, err)
	again, err := config.Read(config.Source{Environ: environ[:1], File: writeFile(t, out)})
	must(t, err)
	reload, restart := first.Changed(again)
	if got := strings.Join(append(reload, restart...), " "); got != "STROMBOLI_API_TOKENS STROMBOLI_JWT_SECRET" {
		t.Errorf("what was printed sets %s otherwise", got)
	}

	code, js, _ := command(t.Context(), t, environ, "config", "print", "--json", "--config", path)
	var items []struct {
		Variable, Key, Origin string
		Value                 any
		Hidden                bool
	}
	if code != 0 || json.Unmarshal([]byte(js), &items) != nil || len(items) != len(first.Settings()) {
		t.Errorf("%d: %s", code, js)
	}
	for _, i := range items {
		if i.Hidden != (i.Key == "api_tokens" || i.Key == "jwt.secret") || i.Hidden && i.Value != nil || i.Origin == "" || i.Variable == "" {
			t.Errorf("%+v", i)
		}
	}
	if strings.Contains(out+js, "hunter") {
		t.Error("a secret is shown")
	}
}

// The check tells all that is wrong, of the file, of what the server makes of
// its values, and of the files that it names; warnings are no fault.
func TestConfigCheck(t *testing.T) {
	path := writeFile(t, "resources:\n  memory: lots\n  cpus: many\nagent:\n  allowed_image_patterns: ['a b']\nwebhook: {allow: ['http://x/']}\n"+
		"egress: {mode: ajar, allow: [x]}\nauth: {enabled: true}\napi_tokens_file: /missing\n")
	code, out, errs := command(t.Context(), t, []string{"HOME=/h", "STROMBOLI_AGENT_TIMEZONE=Mars"}, "config", "check", "--config", path)
	for _, want := range []string{
		path + ":2: resources.memory: STROMBOLI_RESOURCES_MEMORY: ", path + ":3: resources.cpus: ", path + ":5: agent.allowed_image_patterns: ", path + ":6: webhook.allow: ",
		path + ":7: egress.mode: ", path + ":7: egress.allow: ", path + ":9: api_tokens_file: ", "\nSTROMBOLI_AGENT_TIMEZONE: ",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("%q is missing in\n%s", want, errs)
		}
	}
	if code != 1 || out != "" {
		t.Errorf("%d: %s", code, out)
	}
	path = writeFile(t, "compose: {stack_ttl: 1h}\napi_tokens: short\n")
	if code, out, errs := command(t.Context(), t, []string{"HOME=/h"}, "config", "check", "--config", path); code != 0 || !strings.Contains(out, path) ||
		!strings.Contains(errs, "STROMBOLI_COMPOSE_STACK_TTL") || !strings.Contains(errs, "authentication is off") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
}

// Without a command it serves; other commands read the same file.
func TestConfigFlag(t *testing.T) {
	path := writeFile(t, "queue_max: -1\n")
	for _, args := range [][]string{nil, {"serve"}, {"run", "x"}, {"setup"}, {"secrets", "rekey"}, {"config", "print"}, {"config", "check"}} {
		if code, _, errs := command(t.Context(), t, []string{"HOME=/h"}, append(args, "--config", path)...); code != 1 || !strings.Contains(errs, path+":1: queue_max") {
			t.Errorf("%q: %d: %s", args, code, errs)
		}
	}
	t.Chdir(filepath.Dir(path))
	if code, _, errs := command(t.Context(), t, []string{"HOME=/h"}); code != 1 || !strings.Contains(errs, "stromboli.yaml:1: queue_max") {
		t.Errorf("%d: %s", code, errs)
	}
	if code, _, errs := command(t.Context(), t, []string{"HOME=/h"}, "--config", "/missing"); code != 1 || !strings.Contains(errs, "/missing") {
		t.Errorf("%d: %s", code, errs)
	}
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}} {
		if code, out, _ := command(t.Context(), t, nil, args...); code != 0 || !strings.Contains(out, "--config") || !strings.Contains(out, "stromboli.yaml") {
			t.Errorf("%q: %d: %s", args, code, out)
		}
	}
}
