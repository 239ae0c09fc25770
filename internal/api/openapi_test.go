package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/invopop/jsonschema"
	"sigs.k8s.io/yaml"

	"github.com/tomblancdev/stromboli"
)

var update = flag.Bool("update", false, "write the documents of the API anew") //nolint:gochecknoglobals // a flag of the test

// TestDocuments: the documents are those of the types and routes. After a change
// of either, `make docs-swagger` writes them anew.
func TestDocuments(t *testing.T) {
	files, err := documents(t)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		path := filepath.Join("openapi", name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not of this code (%v): run `make docs-swagger`", path, err)
		}
	}
}

// documents makes the OpenAPI document of the routes, in two forms, and its
// Swagger 2.0 rendering.
func documents(t *testing.T) (map[string][]byte, error) {
	t.Helper()
	doc := document(t)
	whole, err := indented(doc)
	if err != nil {
		return nil, err
	}
	asYAML, err := yaml.JSONToYAML(whole)
	if err != nil {
		return nil, err
	}
	old, err := swagger2(doc)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"openapi.json": whole, "openapi.yaml": asYAML, "swagger.json": old}, nil
}

func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	err := enc.Encode(v)
	return b.Bytes(), err
}

// object is a JSON object.
type object = map[string]any

func document(t *testing.T) object {
	t.Helper()
	s := newSchemas(t)
	described := operations()
	paths := object{}
	for _, rt := range (&API{}).routes() {
		op, found := described[rt.pattern]
		if !found {
			t.Fatalf("%s has no operation in operations.go", rt.pattern)
		}
		delete(described, rt.pattern)
		if op.id == "" { // documents and their page
			continue
		}
		method, path, _ := strings.Cut(rt.pattern, " ")
		path = strings.ReplaceAll(path, "...}", "}")
		at, _ := paths[path].(object)
		if at == nil {
			at = object{}
			paths[path] = at
		}
		at[strings.ToLower(method)] = s.operation(rt, op, path)
	}
	for pattern := range described {
		t.Errorf("there is no route %s", pattern)
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title":       "Stromboli",
			"version":     contractVersion,
			"description": "Runs Claude Code agents in isolated sandboxes. Answers may carry more fields than are named here; clients ignore what they don't know.",
			"license":     object{"name": "MIT", "identifier": "MIT"},
		},
		"servers": []any{object{"url": "/"}},
		"paths":   paths,
		"components": object{
			"schemas": s.defs,
			"securitySchemes": object{
				"bearer":   object{"type": "http", "scheme": "bearer", "description": "A static API token or a JWT access token."},
				"apiToken": object{"type": "apiKey", "in": "header", "name": "X-API-Token", "description": "The same in a header of its own."},
			},
		},
	}
}

// schemas makes JSON Schemas of Go types, with their comments as descriptions.
type schemas struct {
	t    *testing.T
	r    *jsonschema.Reflector
	defs object
}

func newSchemas(t *testing.T) *schemas {
	t.Helper()
	r := &jsonschema.Reflector{Anonymous: true, AllowAdditionalProperties: true, Namer: typeName, Mapper: ownForm}
	t.Chdir("../..")
	if err := r.AddGoComments("github.com/tomblancdev/stromboli", "./", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	t.Chdir("internal/api")
	for k, v := range r.CommentMap {
		r.CommentMap[k] = strings.Join(strings.Fields(v), " ")
	}
	return &schemas{t: t, r: r, defs: object{}}
}

// typeName is what generated clients call a type.
func typeName(typ reflect.Type) string {
	switch typ {
	case reflect.TypeFor[stromboli.RunSpec]():
		return "RunRequest"
	case reflect.TypeFor[asyncResponse]():
		return "AsyncRunResponse"
	case reflect.TypeFor[errorBody]():
		return "Error"
	}
	name := typ.Name()
	if name == "" {
		return ""
	}
	name, _, _ = strings.Cut(name, "[") // without its arguments
	return strings.TrimSuffix(upperFirst(name), "Body")
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// ownForm is the schema of types whose JSON is not what their Go form says.
func ownForm(typ reflect.Type) *jsonschema.Schema {
	switch typ {
	case reflect.TypeFor[stromboli.Duration]():
		return &jsonschema.Schema{Type: "string", Description: `A Go duration, such as "90s" or "1h30m".`}
	case reflect.TypeFor[json.RawMessage]():
		return &jsonschema.Schema{Description: "Any JSON value."}
	}
	return nil
}

// of returns the schema of a value's type; those that it refers to are kept.
func (s *schemas) of(v any) object {
	s.t.Helper()
	b, err := json.Marshal(s.r.Reflect(v))
	if err != nil {
		s.t.Fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte(`"#/$defs/`), []byte(`"#/components/schemas/`))
	var schema object
	if err := json.Unmarshal(b, &schema); err != nil {
		s.t.Fatal(err)
	}
	speakJSON(schema)
	defs, _ := schema["$defs"].(object)
	maps.Copy(s.defs, defs)
	delete(schema, "$defs")
	delete(schema, "$schema")
	return schema
}

// speakJSON has descriptions call fields as they are called on the wire.
func speakJSON(v any) {
	switch v := v.(type) {
	case object:
		properties, _ := v["properties"].(object)
		for name, p := range properties {
			field, _ := p.(object)
			text, _ := field["description"].(string)
			first := strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) })
			if len(first) > 0 && strings.HasPrefix(text, first[0]) && strings.EqualFold(first[0], strings.ReplaceAll(name, "_", "")) {
				field["description"] = name + text[len(first[0]):]
			}
		}
		for _, e := range v {
			speakJSON(e)
		}
	case []any:
		for _, e := range v {
			speakJSON(e)
		}
	}
}

func (s *schemas) operation(rt route, op operation, path string) object {
	out := object{"operationId": op.id, "summary": op.summary, "tags": []any{op.tag}}
	if rt.open {
		out["security"] = []any{}
	} else {
		out["security"] = []any{object{}, object{"bearer": []any{}}, object{"apiToken": []any{}}}
	}
	var params []any
	for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, p := range op.query {
		params = append(params, object{"name": p.name, "in": p.in, "description": p.about, "required": p.required, "schema": s.of(p.value)})
	}
	if len(params) > 0 {
		out["parameters"] = params
	}
	switch op.body.(type) {
	case nil:
	case lines:
		out["requestBody"] = object{"required": true, "content": object{"application/jsonl": object{"schema": object{"type": "string"}}}}
	default:
		out["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(op.body)}}}
	}
	out["responses"] = s.answers(rt, op)
	return out
}

func (s *schemas) answers(rt route, op operation) object {
	out := object{}
	refusals := append([]int{http.StatusBadRequest, http.StatusInternalServerError}, op.errors...)
	if strings.Contains(rt.pattern, "{") {
		refusals = append(refusals, http.StatusNotFound)
	}
	if rt.acts {
		refusals = append(refusals, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusServiceUnavailable)
	}
	if !rt.open {
		refusals = append(refusals, http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest, http.StatusTooManyRequests)
	}
	if rt.jwt {
		refusals = append(refusals, http.StatusServiceUnavailable)
	}
	slices.Sort(refusals)
	for _, status := range refusals {
		out[strconv.Itoa(status)] = object{"description": http.StatusText(status), "content": object{"application/json": object{"schema": s.of(errorBody{})}}}
	}
	for status, a := range op.answers {
		answer := object{"description": http.StatusText(status)}
		switch {
		case a.as != "" && a.body != nil:
			answer["content"] = object{"application/json": object{"schema": s.of(a.body)}, a.as: object{"schema": object{"type": "string"}}}
		case a.as != "":
			answer["content"] = object{a.as: object{"schema": object{"type": "string"}}}
		case a.body != nil && status >= http.StatusBadRequest: // the whole run, or a refusal
			both := []any{s.of(a.body), s.of(errorBody{})}
			answer["content"] = object{"application/json": object{"schema": object{"anyOf": both}}}
		case a.body != nil:
			answer["content"] = object{"application/json": object{"schema": s.of(a.body)}}
		}
		out[strconv.Itoa(status)] = answer
	}
	return out
}

// swagger2 renders the document for generators that know Swagger 2.0 only: what
// that can't say, choices between two bodies, becomes the first.
func swagger2(doc object) ([]byte, error) {
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	var three object
	if err := json.Unmarshal(b, &three); err != nil {
		return nil, err
	}
	simplify(three)
	three["openapi"] = "3.0.3"
	if b, err = json.Marshal(three); err != nil {
		return nil, err
	}
	loaded, err := openapi3.NewLoader().LoadFromData(b)
	if err != nil {
		return nil, fmt.Errorf("as OpenAPI 3.0: %w", err)
	}
	two, err := openapi2conv.FromV3(loaded)
	if err != nil {
		return nil, fmt.Errorf("as Swagger 2.0: %w", err)
	}
	whole, err := indented(two)
	// The conversion leaves references inside maps as they were.
	return bytes.ReplaceAll(whole, []byte(`"#/components/schemas/`), []byte(`"#/definitions/`)), err
}

func simplify(v any) {
	switch v := v.(type) {
	case object:
		if choice, ok := v["anyOf"].([]any); ok {
			delete(v, "anyOf")
			maps.Copy(v, choice[0].(object))
		}
		if id, ok := v["identifier"]; ok && v["name"] == id { // of the licence
			delete(v, "identifier")
		}
		if v["security"] != nil { // an empty requirement means "or none", which 2.0 has no word for
			delete(v, "security")
		}
		for k, e := range v {
			if e == true && k != "required" && k != "readOnly" { // any value
				v[k] = object{}
			}
			simplify(v[k])
		}
	case []any:
		for _, e := range v {
			simplify(e)
		}
	}
}
