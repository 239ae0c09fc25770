package api_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// The suite walks over the fields of stromboli.RunSpec by reflection, so that a
// new field is tested the day it comes: unless a table below says that it takes
// a kind of text, it must refuse it and name itself.

// attack is a text that a field must refuse, or take as it is.
type attack struct {
	name, text string
}

const (
	nul       = "NUL"
	newline   = "newline"
	escape    = "escape sequence"
	dash      = "leading dash"
	traversal = "traversal"
	injection = "injection"
	unicode   = "unicode"
	blank     = "blank"
)

func attacks() []attack {
	return []attack{
		{nul, "a\x00b"},
		{newline, "a\nb"},
		{escape, "a\x1b[31mb"},
		{dash, "--version"},
		{traversal, "../../etc/passwd"},
		{injection, "$(id)`id`;id|id&&'id'\"id\" --mcp-config=/etc/passwd"},
		{unicode, "é→😀\u202e"},
		{blank, " \t "},
	}
}

// takes are the attacks that are no attack on a field, since its text goes
// nowhere but to the model or back to the caller. "x[]" are a list's elements,
// "x{}" a map's values, "x{key}" its names.
func takes() map[string][]string {
	prose := []string{newline, escape, traversal, injection, unicode, blank}
	// A pattern is compared with names of tools, nothing else.
	pattern := []string{traversal, injection, unicode}
	// A hook is a shell command of the caller's.
	command := []string{newline, escape, dash, traversal, injection, unicode}
	return map[string][]string{
		"prompt":                      {nul, newline, escape, dash, traversal, injection, unicode},
		"metadata{}":                  {newline, escape, dash, traversal, injection, unicode, blank},
		"metadata{key}":               {dash, traversal, unicode},
		"claude.system_prompt":        prose,
		"claude.append_system_prompt": prose,
		"claude.model":                {traversal},
		"claude.fallback_model":       {traversal},
		"claude.agent":                pattern,
		// Paths in the sandbox, relative to the workdir, or JSON.
		"claude.add_dirs[]":         {injection, unicode},
		"claude.mcp_configs[]":      {injection, unicode},
		"claude.plugin_dirs[]":      {injection, unicode},
		"claude.settings":           {injection, unicode},
		"env{}":                     {newline, escape, dash, traversal, injection, unicode, blank},
		"podman.secrets_env{}":      {dash}, // a secret may be called so
		"claude.session_id":         {dash}, // an alias: never part of a command line or path
		"claude.allowed_tools[]":    pattern,
		"claude.disallowed_tools[]": pattern,

		"podman.lifecycle.on_create_command[]": command,
		"podman.lifecycle.post_create[]":       command,
		"podman.lifecycle.post_start[]":        command,
	}
}

// unsupported are fields of which some values are refused as not_supported: the
// contract has them and the agent CLI hasn't.
func unsupported() []string { return []string{"claude.permission_mode", "claude.files"} }

// field is one of the spec's, by its path.
type field struct {
	path string
	typ  reflect.Type
}

func (f field) is(k reflect.Kind) bool { return f.typ.Kind() == k }
func (f field) duration() bool         { return f.typ == reflect.TypeFor[stromboli.Duration]() }

// fields lists t's, groups before their members.
func fields(t reflect.Type, prefix string) []field {
	var all []field
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		f := field{prefix + name, t.Field(i).Type}
		if f.is(reflect.Pointer) {
			f.typ = f.typ.Elem()
		}
		all = append(all, f)
		if f.is(reflect.Struct) {
			all = append(all, fields(f.typ, f.path+".")...)
		}
	}
	return all
}

// body is a request that sets one field.
func (f field) body(value string) string {
	names := strings.Split(f.path, ".")
	if names[0] == "prompt" {
		return `{"prompt":` + value + `}`
	}
	b := value
	for _, n := range slices.Backward(names) {
		b = `{"` + n + `":` + b + `}`
	}
	return `{"prompt":"x",` + b[1:]
}

// wrongTypes are JSON values of other types than the field's, and what the
// refusal names.
func (f field) wrongTypes(t *testing.T) map[string]string {
	all := map[string]string{
		`7`: f.path, `-7.25`: f.path, `1e2`: f.path, `true`: f.path, `"no such value"`: f.path,
		`["x"]`: f.path, `[7]`: f.path, `[["x"]]`: f.path, `{"a":"b"}`: f.path, `{"a":7}`: f.path, `{"a":{"b":"c"}}`: f.path,
	}
	never := func(values ...string) {
		for _, v := range values {
			delete(all, v)
		}
	}
	switch {
	case f.duration():
	case f.is(reflect.String):
		never(`"no such value"`)
	case f.is(reflect.Bool):
		never(`true`)
	case f.is(reflect.Int):
		never(`7`)
	case f.is(reflect.Float64):
		never(`7`, `-7.25`, `1e2`)
	case f.is(reflect.Slice) && f.typ.Elem().Kind() == reflect.String:
		never(`["x"]`)
		all[`[7]`], all[`[["x"]]`] = f.path+"[0]", f.path+"[0]"
	case f.is(reflect.Map) && f.typ.Elem().Kind() == reflect.String:
		never(`{"a":"b"}`)
		all[`{"a":7}`], all[`{"a":{"b":"c"}}`] = f.path+".a", f.path+".a"
	case f.is(reflect.Slice): // of objects: every one of these is something else
	case f.is(reflect.Struct):
		for _, v := range []string{`{"a":"b"}`, `{"a":7}`, `{"a":{"b":"c"}}`} {
			all[v] = f.path + ".a"
		}
	default: // JSON of any form is for the field's own tests
		if f.typ != reflect.TypeFor[json.RawMessage]() && !f.is(reflect.Interface) && !f.is(reflect.Map) {
			t.Errorf("%s has the type %s, which this suite doesn't know", f.path, f.typ)
		}
		return nil
	}
	return all
}

// huge are values of the field's own type beyond every measure.
func (f field) huge() []string {
	long := `"` + strings.Repeat("x", 256<<10) + `"`
	switch {
	case f.path == "prompt": // the body's limit is its own
		return nil
	case f.duration():
		return []string{`"9999999h"`, `"-1ns"`, `"1e9h"`, `"99999999999999999999h"`, long}
	case f.is(reflect.String):
		return []string{long}
	case f.is(reflect.Int):
		return []string{`-1`, `2147483647`, `-2147483648`, `99999999999999999999`, `1e400`}
	case f.is(reflect.Float64):
		return []string{`-0.5`, `1e300`, `-1e300`, `1e999`}
	case f.is(reflect.Slice):
		return []string{`[` + strings.Repeat(`"/x/y:/z",`, 10_000) + `"/x/y:/z"]`, `[` + long + `]`}
	case f.is(reflect.Map):
		var b strings.Builder
		for i := range 10_000 {
			fmt.Fprintf(&b, `"k%d":"v",`, i)
		}
		return []string{`{` + b.String() + `"k":"v"}`, `{"k":` + long + `}`, `{` + long + `:"v"}`}
	}
	return nil
}

// texts are the places of a field in which a text may stand.
func (f field) texts() map[string]func(quoted string) string {
	switch {
	case f.duration():
		return nil // any text is of another type
	case f.is(reflect.String):
		return map[string]func(string) string{"": func(s string) string { return s }}
	case f.is(reflect.Slice) && f.typ.Elem().Kind() == reflect.String:
		return map[string]func(string) string{"[]": func(s string) string { return `[` + s + `]` }}
	case f.is(reflect.Map) && f.typ.Elem().Kind() == reflect.String:
		return map[string]func(string) string{
			"{}":    func(s string) string { return `{"K":` + s + `}` },
			"{key}": func(s string) string { return `{` + s + `:"v"}` },
		}
	}
	return nil
}

// strictly judges as the server does, and lets each run end at once.
func strictly(s *server) {
	s.fake.SubmitErr = func(sub stromboli.Submission) error {
		cfg := policy.Config{
			Memory: 512 << 20, NanoCPUs: 1e9, Timeout: time.Minute, AllowedVolumes: []string{"/srv/allowed"}, Home: "/home/agent",
		}
		if _, err := policy.Check(sub.Spec, cfg); err != nil {
			return err
		}
		if sub.Spec.WebhookURL != "" { // as the runner does
			if err := policy.CheckWebhook(sub.Spec.WebhookURL, cfg.Webhooks); err != nil {
				return err
			}
		}
		if err := claude.ValidateInput(sub.Spec); err != nil {
			return err
		}
		return claude.Validate(sub.Spec.Claude)
	}
	s.fake.OnSubmit = func(run stromboli.Run) {
		s.fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed})
	}
}

func endpoints() []string { return []string{"/run", "/run/async", "/run/stream"} }

// refuses checks that every endpoint answers with exactly this, and that
// nothing was submitted. A field that is a list or a map may name the member.
func (s *server) refuses(t *testing.T, body, code, field string) {
	t.Helper()
	before := len(s.fake.Submissions())
	for i, path := range endpoints() {
		if i > 0 && len(body) > 1<<20 {
			break // once is enough to see it
		}
		s.refusal(t, path, s.ask("POST", path, body), code, field)
	}
	if n := len(s.fake.Submissions()) - before; n != 0 {
		t.Errorf("%.200s started %d runs", body, n)
	}
}

func (s *server) refusal(t *testing.T, path string, a answer, code, field string) {
	t.Helper()
	if f := func(p string) bool { return p == field || strings.HasPrefix(field, p+"[") }; slices.ContainsFunc(unsupported(), f) && a.body["code"] == "not_supported" {
		code = "not_supported"
	}
	if a.status != 400 || a.body["code"] != code || a.body["status"] != "error" || a.body["error"] == "" {
		t.Errorf("%s: status %d, want 400 %s for %s: %.300s", path, a.status, code, field, a.raw)
		return
	}
	if len(a.raw) > 16<<10 {
		t.Errorf("%s: an answer of %d bytes", path, len(a.raw))
	}
	details, _ := a.body["details"].([]any)
	var got string
	if len(details) > 0 {
		first, _ := details[0].(map[string]any)
		got, _ = first["field"].(string)
	}
	if got != field && !strings.HasPrefix(got, field+"[") && !strings.HasPrefix(got, field+".") {
		t.Errorf("%s: the refusal names %q, want %s: %.300s", path, got, field, a.raw)
	}
	for _, r := range a.raw {
		if r < ' ' || r == '\u2028' {
			t.Errorf("%s: the answer holds %q: %.300s", path, r, a.raw)
		}
	}
}

// accepts checks that a body starts a run whose spec holds the value as it was
// given, and returns that spec.
func (s *server) accepts(t *testing.T, what, body string) stromboli.RunSpec {
	t.Helper()
	if a := s.ask("POST", "/run/async", body); a.status != 202 {
		t.Errorf("%s: status %d, want 202: %.300s", what, a.status, a.raw)
		return stromboli.RunSpec{}
	}
	all := s.fake.Submissions()
	return all[len(all)-1].Spec
}
