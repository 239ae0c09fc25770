package config

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

//nolint:gochecknoglobals // a flag
var update = flag.Bool("update", false, "write the generated part of docs/CONFIGURATION.md")

const (
	manualPath  = "../../docs/CONFIGURATION.md"
	manualBegin = "<!-- What follows is made of internal/config by `make docs-config`. -->\n"
	manualEnd   = "<!-- End of what is made. -->\n"
)

// TestManual: the manual's tables are those of the struct. After a change of it
// `make docs-config` writes them anew.
func TestManual(t *testing.T) {
	have, err := os.ReadFile(manualPath)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(have, []byte(manualBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(manualEnd))
	if !ok || !ok2 {
		t.Fatalf("%s has lost the marks of its generated part", manualPath)
	}
	want := string(before) + manualBegin + manual(t) + manualEnd + string(after)
	if *update {
		if err := os.WriteFile(manualPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(have) {
		t.Errorf("%s is not of this code: run `make docs-config`", manualPath)
	}
}

// comments are the doc comments of the package's structs and of their fields,
// by "Type" and "Type.Field".
func comments(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range decl.Specs {
				spec, ok := s.(*ast.TypeSpec)
				if !ok {
					continue
				}
				out[spec.Name.Name] = decl.Doc.Text()
				if body, ok := spec.Type.(*ast.StructType); ok {
					for _, f := range body.Fields.List {
						for _, name := range f.Names {
							out[spec.Name.Name+"."+name.Name] = f.Doc.Text()
						}
					}
				}
			}
		}
	}
	return out
}

func manual(t *testing.T) string {
	t.Helper()
	docs := comments(t)
	var b strings.Builder
	section := func(title, about string, fields []field, keys bool) {
		fmt.Fprintf(&b, "\n### %s\n\n", title)
		if about != "" {
			fmt.Fprintf(&b, "%s\n\n", about)
		}
		b.WriteString(map[bool]string{
			true:  "| variable | in the file | default | meaning |\n|---|---|---|---|\n",
			false: "| variable | meaning |\n|---|---|\n",
		}[keys])
		for _, f := range fields {
			meaning := prose(docs[f.owner+"."+f.name], f, fields)
			if f.noEffect != "" {
				meaning += " No effect, with a warning at the start if it is set otherwise: " + f.noEffect + "."
			}
			if f.reload {
				meaning += " ↻"
			}
			if !keys {
				fmt.Fprintf(&b, "| `%s` | %s |\n", f.env, meaning)
				continue
			}
			value := "`" + f.value + "`"
			switch {
			case f.value == "" && f.typ.Kind() == reflect.Bool:
				value = "`false`"
			case f.value == "":
				value = ""
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", f.env, f.key, value, meaning)
		}
	}
	var top []field
	config := reflect.TypeFor[Config]()
	for _, f := range schema() {
		if len(f.index) == 1 {
			top = append(top, f)
		}
	}
	section("Without a section", "", top, true)
	for i := range config.NumField() {
		f := config.Field(i)
		if below, ok := f.Tag.Lookup("envPrefix"); ok {
			fields := fieldsOf(f.Type, below, []int{i})
			title := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(below, prefix), "_"))
			about := strings.TrimPrefix(strings.Join(strings.Fields(docs[f.Type.Name()]), " "), f.Type.Name()+" is ")
			section("`"+title+"`", strings.ToUpper(about[:1])+about[1:], fields, true)
		}
	}
	section("For `stromboli run`", "Read from the environment alone.", clientFields(), false)
	b.WriteString("\n")
	return b.String()
}

// prose turns a field's comment into a table's cell: without the field's own
// name in front, and with the variables of its neighbours in place of theirs.
func prose(comment string, f field, neighbours []field) string {
	text := strings.Join(strings.Fields(comment), " ")
	text = regexp.MustCompile(`^`+f.name+`(:| is| are|) `).ReplaceAllString(text, "")
	for _, n := range neighbours {
		if n.name != f.name {
			text = regexp.MustCompile(`([a-z,] )`+n.name+`\b`).ReplaceAllString(text, "$1`"+n.env+"`")
		}
	}
	return strings.NewReplacer("|", "\\|", "*.", "\\*.", "/*", "/\\*", "**", "\\*\\*", "3.*", "3.\\*").Replace(text)
}

// TestEveryFieldIsExplained: the comment is the manual, and a field without a
// variable would be one that nobody can set.
func TestEveryFieldIsExplained(t *testing.T) {
	docs := comments(t)
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		if docs[typ.Name()] == "" {
			t.Errorf("%s has no comment", typ.Name())
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			_, nested := f.Tag.Lookup("envPrefix")
			switch {
			case !f.IsExported():
			case nested:
				walk(f.Type)
			case f.Tag.Get("env") == "":
				t.Errorf("%s.%s has no variable", typ.Name(), f.Name)
			case strings.TrimSpace(docs[typ.Name()+"."+f.Name]) == "":
				t.Errorf("%s.%s has no comment: it is the manual", typ.Name(), f.Name)
			}
		}
	}
	walk(reflect.TypeFor[Config]())
	walk(reflect.TypeFor[Client]())
	seen := map[string]string{}
	for _, f := range schema() {
		if other := seen[f.key]; other != "" {
			t.Errorf("%s and %s are both %s in the file", other, f.env, f.key)
		}
		seen[f.key] = f.env
	}
}
