// Package archtest holds the rule which package may import which, and a test
// that the code keeps it. Whoever needs another arrow changes the table in the
// same commit and says why.
package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tomblancdev/stromboli"

// anything marks packages that wire the others together.
const anything = "*"

// may is the table: our own packages that a package may import, by path below
// the module; "." is the root. A package that isn't listed fails the test, so
// that a new one gets its line.
func may() map[string][]string {
	const root = "."
	return map[string][]string{
		root:     {},
		"client": {root},
		"images": {},

		"cmd/stromboli":      {anything},
		"cmd/stromboli-shim": {"internal/shim"},

		"internal/audit":             {root},
		"internal/backup":            {},
		"internal/config":            {},
		"internal/policy":            {root},
		"internal/claude":            {root},
		"internal/unixsock":          {},
		"internal/idmap":             {},
		"internal/health":            {},
		"internal/engine":            {},
		"internal/engine/podman":     {"internal/engine"},
		"internal/engine/enginetest": {"internal/engine"},
		"internal/shim":              {root, "internal/unixsock"},
		"internal/sandbox":           {root, "internal/engine", "internal/idmap", "internal/shim", "internal/policy"},
		"internal/image":             {root, "internal/engine", "internal/policy"},
		"internal/modelstub":         {},
		"internal/egress":            {root, "internal/policy", "internal/unixsock"},
		// The shim's lines, process and exit are what the runner speaks; aliases in
		// sandbox would only be second names for them.
		"internal/runner":          {root, "internal/policy", "internal/claude", "internal/sandbox", "internal/shim"},
		"internal/store":           {root},
		"internal/store/storetest": {root, "internal/store"},
		"internal/eventlog":        {root},
		"internal/blob":            {root},
		"internal/blob/blobtest":   {},
		"internal/archive":         {root},
		"internal/retention":       {root},
		"internal/setup":           {root, "internal/engine", "images"},
		"internal/secret":          {root},
		"internal/auth":            {root},
		"internal/api":             {root, "internal/api/openapi", "internal/eventlog", "internal/auth"},
		"internal/api/openapi":     {},
		// Metrics are made of the vocabulary's events, and log lines tell the
		// vocabulary's Origin.
		"internal/telemetry":               {root},
		"internal/archtest":                {},
		"e2e":                              {anything},
		"internal/api/apitest":             {root, "internal/api", "internal/eventlog", "internal/auth"},
		"internal/engine/enginetest/probe": {},
		"internal/compose":                 {root, "internal/engine", "internal/policy"},
		// Who may be told is judged by the same rules as what sandboxes may reach.
		"internal/webhook": {root, "internal/policy"},
		"internal/web":     {},
		// A line of the CLI is understood in one place.
		"internal/tracing":             {root, "internal/claude"},
		"internal/tracing/tracingtest": {},
	}
}

// mayInTests are further imports of a package's tests: the suites and fakes
// that keep two implementations alike, and the scripted model.
func mayInTests() map[string][]string {
	return map[string][]string{
		"internal/engine":            {"internal/engine/enginetest"},
		"internal/engine/podman":     {"internal/engine/enginetest"},
		"internal/engine/enginetest": {"internal/engine/podman"},
		"internal/store":             {"internal/store/storetest"},
		"internal/store/storetest":   {"internal/store"},
		"internal/eventlog":          {"internal/store"},
		"internal/egress":            {"internal/modelstub"},
		"internal/claude":            {"internal/modelstub"},
		"internal/sandbox":           {"internal/engine/enginetest", "internal/engine/podman"},
		"internal/secret":            {"internal/store"},
		"internal/blob":              {"internal/blob/blobtest"},
		"internal/archive":           {"internal/store", "internal/blob", "internal/blob/blobtest", "internal/eventlog"},
		"internal/auth":              {"internal/store"},
		"internal/webhook":           {"internal/store"},
		"internal/tracing":           {"internal/tracing/tracingtest"},
		"internal/image":             {"internal/engine/enginetest"},
		"internal/runner":            {"internal/image", "internal/secret", "internal/store", "internal/eventlog", "internal/blob", "internal/engine", "internal/engine/enginetest"},
		// Bad input is judged in tests by those who judge it in the server.
		"internal/api": {"internal/api/apitest", "internal/audit", "internal/claude", "internal/policy"},
		"client":       {"internal/api", "internal/api/apitest", "internal/eventlog", "internal/auth"},
	}
}

// stdOnly are packages that take nothing from third parties, with the modules
// that are excepted.
func stdOnly() map[string][]string {
	return map[string][]string{
		".":                      {},
		"client":                 {},
		"images":                 {},
		"internal/audit":         {},
		"internal/backup":        {},
		"cmd/stromboli-shim":     {},
		"internal/unixsock":      {"golang.org/x/sys/"},
		"internal/idmap":         {"golang.org/x/sys/"},
		"internal/engine":        {"golang.org/x/sys/"},
		"internal/engine/podman": {"golang.org/x/sys/"},
		"internal/policy":        {},
		"internal/claude":        {},
		"internal/eventlog":      {},
		"internal/shim":          {"golang.org/x/sys/"},
		"internal/modelstub":     {},
		"internal/archtest":      {},
	}
}

// never are packages of the standard library that a package must not use.
func never() map[string][]string {
	return map[string][]string{
		".":                 {"net", "net/http", "os", "os/exec"},
		"internal/policy":   {"net/http", "os", "os/exec"},
		"internal/claude":   {"net", "net/http", "os", "os/exec"},
		"internal/runner":   {"net/http"},
		"internal/eventlog": {"net/http"},
	}
}

// pkg is what `go list -json` says of one package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list's output: %v", err)
		}
		all = append(all, p)
	}
}

// below returns a path below the module, and whether it is one.
func below(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// violations checks one package against the tables.
func violations(p pkg) []string {
	name, _ := below(p.ImportPath)
	allowed, listed := may()[name]
	if !listed {
		return []string{name + " has no line in the import table"}
	}
	var bad []string
	ours := func(imports []string, allowed []string, of string) {
		if slices.Contains(allowed, anything) {
			return
		}
		for _, path := range imports {
			if to, ok := below(path); ok && to != name && !slices.Contains(allowed, to) {
				bad = append(bad, name+of+" must not import "+to)
			}
		}
	}
	ours(p.Imports, allowed, "")
	inTests := slices.Concat(allowed, mayInTests()[name])
	ours(p.TestImports, inTests, "'s tests")
	ours(p.XTestImports, inTests, "'s tests")

	for _, path := range p.Imports {
		if excepted, ok := stdOnly()[name]; ok && thirdParty(path) &&
			!slices.ContainsFunc(excepted, func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
			bad = append(bad, name+" must not import "+path)
		}
		if slices.Contains(never()[name], path) {
			bad = append(bad, name+" must not import "+path)
		}
	}
	return bad
}

func thirdParty(path string) bool {
	if _, ours := below(path); ours {
		return false
	}
	first, _, _ := strings.Cut(path, "/")
	return strings.Contains(first, ".")
}

func TestImports(t *testing.T) {
	t.Parallel()
	all := list(t)
	if len(all) == 0 {
		t.Fatal("go list found no package")
	}
	for _, p := range all {
		for _, bad := range violations(p) {
			t.Error(bad)
		}
	}
}

// The rule itself must be able to fail.
func TestViolationsAreSeen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		pkg  pkg
		want int
	}{
		{"allowed", pkg{ImportPath: module + "/internal/store", Imports: []string{module, "modernc.org/sqlite", "os"}}, 0},
		{"forbidden sibling", pkg{ImportPath: module + "/internal/engine", Imports: []string{module + "/internal/store"}}, 1},
		{"the root imports nothing of ours", pkg{ImportPath: module, Imports: []string{module + "/client"}}, 1},
		{"third party", pkg{ImportPath: module + "/internal/modelstub", Imports: []string{"golang.org/x/sys/unix"}}, 1},
		{"excepted third party", pkg{ImportPath: module + "/internal/shim", Imports: []string{"golang.org/x/sys/unix"}}, 0},
		{"I/O in a pure package", pkg{ImportPath: module + "/internal/claude", Imports: []string{"net/http"}}, 1},
		{"only in tests", pkg{ImportPath: module + "/internal/store", XTestImports: []string{module + "/internal/store/storetest"}}, 0},
		{"not even in tests", pkg{ImportPath: module + "/internal/store", TestImports: []string{module + "/internal/api"}}, 1},
		{"the wiring may all", pkg{ImportPath: module + "/cmd/stromboli", Imports: []string{module + "/internal/api"}}, 0},
		{"unknown package", pkg{ImportPath: module + "/internal/util"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := violations(tt.pkg); len(got) != tt.want {
				t.Errorf("got %q, want %d violations", got, tt.want)
			}
		})
	}
}
