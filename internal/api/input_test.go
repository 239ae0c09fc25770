package api_test

import (
	"encoding/json"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestInputTypes: every field, values of other types and beyond every measure.
func TestInputTypes(t *testing.T) {
	s := start(t)
	strictly(s)
	all := fields(reflect.TypeFor[stromboli.RunSpec](), "")
	if len(all) < 27 {
		t.Fatalf("the spec has %d fields", len(all))
	}
	for _, f := range all {
		t.Run(f.path, func(t *testing.T) {
			s.t = t
			for value, names := range f.wrongTypes(t) {
				s.refuses(t, f.body(value), "invalid_request", names)
			}
			for _, value := range f.huge() {
				s.refuses(t, f.body(value), "invalid_request", f.path)
			}
		})
	}
}

// TestInputUnset: null, "", [] and {} are what generated clients send for a
// field that isn't set; only the prompt must be.
func TestInputUnset(t *testing.T) {
	s := start(t)
	strictly(s)
	for _, f := range fields(reflect.TypeFor[stromboli.RunSpec](), "") {
		for _, value := range []string{`null`, `""`, `[]`, `{}`} {
			if f.path == "prompt" {
				s.refuses(t, f.body(value), "invalid_request", "prompt")
				continue
			}
			spec := s.accepts(t, f.path+" "+value, f.body(value))
			if !reflect.DeepEqual(spec, stromboli.RunSpec{Prompt: "x"}) {
				t.Errorf("%s as %s is %+v", f.path, value, spec)
			}
		}
	}
	s.refuses(t, `{}`, "invalid_request", "prompt")
}

// TestInputUnknown: in every group, names that aren't fields, or nearly are.
func TestInputUnknown(t *testing.T) {
	s := start(t)
	strictly(s)
	groups := []field{{"", reflect.TypeFor[stromboli.RunSpec]()}}
	for _, f := range fields(groups[0].typ, "") {
		if f.is(reflect.Struct) {
			groups = append(groups, f)
		}
	}
	for _, g := range groups {
		dot, members := "", fields(g.typ, "")
		if g.path != "" {
			dot = g.path + "."
		}
		names := map[string]string{
			"no_such_field": dot + "no_such_field", "__proto__": dot + "__proto__", "a\nb": dot + `"a\nb"`, "": dot + `""`, "é": dot + `"é"`,
			members[0].path + " ": dot + `"` + members[0].path + ` "`,
		}
		for _, m := range members { // names are exact
			if !strings.Contains(m.path, ".") {
				upper := strings.ToUpper(m.path[:1]) + m.path[1:]
				names[upper] = dot + upper
			}
		}
		for name, want := range names {
			quoted, err := json.Marshal(name)
			if err != nil {
				t.Fatal(err)
			}
			member := `{` + string(quoted) + `:"x"}`
			body := field{path: g.path}.body(member)
			if g.path == "" {
				body = `{"prompt":"x",` + member[1:]
			}
			s.refuses(t, body, "invalid_request", want)
		}
	}
}

// TestInputTexts: every place of a text, every attack.
func TestInputTexts(t *testing.T) {
	s := start(t)
	strictly(s)
	taken, known := takes(), map[string]bool{}
	for _, f := range fields(reflect.TypeFor[stromboli.RunSpec](), "") {
		for place, put := range f.texts() {
			known[f.path+place] = true
			for _, a := range attacks() {
				quoted, err := json.Marshal(a.text)
				if err != nil {
					t.Fatal(err)
				}
				body := f.body(put(string(quoted)))
				if !slices.Contains(taken[f.path+place], a.name) {
					s.refuses(t, body, "invalid_request", f.path)
					continue
				}
				spec := s.accepts(t, f.path+place+" with "+a.name, body)
				if !slices.Contains(textsOf(reflect.ValueOf(spec)), a.text) {
					t.Errorf("%s%s with %s was changed: %+v", f.path, place, a.name, spec)
				}
			}
		}
	}
	for path := range taken {
		if !known[path] {
			t.Errorf("there is no %s", path)
		}
	}
}

// textsOf lists all strings in a value.
func textsOf(v reflect.Value) []string {
	var all []string
	switch v.Kind() {
	case reflect.String:
		all = append(all, v.String())
	case reflect.Struct:
		for i := range v.NumField() {
			all = append(all, textsOf(v.Field(i))...)
		}
	case reflect.Slice:
		for i := range v.Len() {
			all = append(all, textsOf(v.Index(i))...)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			all = append(all, textsOf(it.Key())...)
			all = append(all, textsOf(it.Value())...)
		}
	default:
	}
	return all
}

// TestInputQuery: what GET /run/stream takes from its query is judged in the
// same way.
func TestInputQuery(t *testing.T) {
	s := start(t)
	strictly(s)
	taken := takes()
	for param, path := range map[string]string{"prompt": "prompt", "workdir": "workdir", "session_id": "claude.session_id"} {
		for _, a := range attacks() {
			q := url.Values{"prompt": {"x"}}
			q.Set(param, a.text)
			before := len(s.fake.Submissions())
			got := s.ask("GET", "/run/stream?"+q.Encode(), "")
			if slices.Contains(taken[path], a.name) {
				if got.status != 200 || len(s.fake.Submissions()) != before+1 {
					t.Errorf("%s with %s: status %d: %.300s", param, a.name, got.status, got.raw)
				}
				continue
			}
			s.refusal(t, "GET /run/stream", got, "invalid_request", path)
			if len(s.fake.Submissions()) != before {
				t.Errorf("%s with %s started a run", param, a.name)
			}
		}
	}
}
