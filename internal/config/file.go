package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// given is a value in the file, in the form that its variable would have.
type given struct {
	text string
	line int
}

// readFile reads the YAML file: what it sets, by the variables' names. The error
// is all that is wrong, each with file, line and key.
func readFile(path string) (map[string]given, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // no file sets nothing
	}
	b, info, err := ReadFile(path, maxFile)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	mode := info.Mode()
	r := reader{path: path, out: map[string]given{}}
	root, err := document(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if root != nil {
		r.mapping(root, "")
	}
	if mode.Perm()&0o002 != 0 {
		r.errs = append(r.errs, fmt.Errorf("%s: everybody may write it (mode %04o): chmod go-w %s", path, mode.Perm(), path))
	}
	for _, f := range schema() {
		if v := r.out[f.env]; f.secret() && v.text != "" && mode.Perm()&0o077 != 0 {
			r.errs = append(r.errs, fmt.Errorf("%s:%d: %s: it is a secret, and others can read the file (mode %04o): chmod 600 %s", path, v.line, f.key, mode.Perm(), path))
		}
	}
	return r.out, errors.Join(r.errs...)
}

// document parses the one document that a file may hold; nil: it is empty.
func document(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil //nolint:nilnil // an empty file sets nothing
	case err != nil:
		return nil, fmt.Errorf("it is not YAML: %w", err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document in it")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, errors.New("it is not YAML")
	}
	if root := resolve(doc.Content[0]); root.Tag != "!!null" {
		return root, nil
	}
	return nil, nil //nolint:nilnil // nothing but comments
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// reader walks the file's tree as far as the settings' keys go.
type reader struct {
	path string
	out  map[string]given
	errs []error
}

func (r *reader) wrong(n *yaml.Node, key, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s:%d: %s: %s", r.path, n.Line, key, fmt.Sprintf(format, args...)))
}

func (r *reader) mapping(n *yaml.Node, section string) {
	if n.Kind != yaml.MappingNode {
		if section == "" {
			section = "the file"
		}
		r.wrong(n, section, "it is not a mapping of names to values")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], resolve(n.Content[i+1])
		key := name.Value
		if section != "" {
			key = section + "." + key
		}
		if name.Kind != yaml.ScalarNode {
			r.wrong(name, section, "a name is text")
			continue
		}
		if strings.Contains(name.Value, ".") { // it would be a second way to set one thing
			r.wrong(name, key, "no such setting; a section is a mapping, not a part of a name")
			continue
		}
		if before, twice := seen[key]; twice {
			r.wrong(name, key, "it is set twice, first in line %d", before)
			continue
		}
		seen[key] = name.Line
		r.entry(name, key, value)
	}
}

func (r *reader) entry(name *yaml.Node, key string, value *yaml.Node) {
	var keys []string
	for _, f := range schema() {
		if f.key == key {
			r.setting(f, name, value)
			return
		}
		if strings.HasPrefix(f.key, key+".") {
			if value.Tag != "!!null" {
				r.mapping(value, key)
			}
			return
		}
		keys = append(keys, f.key)
	}
	r.wrong(name, key, "no such setting%s", meant(key, keys))
}

func (r *reader) setting(f field, name, value *yaml.Node) {
	text := value.Value
	switch {
	case value.Kind == yaml.ScalarNode && value.Tag == "!!null":
		text = ""
	case value.Kind == yaml.ScalarNode:
	case value.Kind == yaml.SequenceNode && (f.typ.Kind() == reflect.Slice || f.secret()):
		var items []string
		for _, item := range value.Content {
			item = resolve(item)
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" || item.Value == "" || strings.Contains(item.Value, ",") {
				r.wrong(item, f.key, "an entry of a list is text without a comma, and not empty")
				return
			}
			items = append(items, item.Value)
		}
		text = strings.Join(items, ",")
	case value.Kind == yaml.MappingNode && f.typ.Kind() == reflect.Map:
		var items []string
		for i := 0; i+1 < len(value.Content); i += 2 {
			k, v := value.Content[i], resolve(value.Content[i+1])
			if k.Kind != yaml.ScalarNode || v.Kind != yaml.ScalarNode || strings.ContainsAny(k.Value+v.Value, ",") || strings.Contains(k.Value, ":") {
				r.wrong(k, f.key, "an entry is a name and a value, without commas")
				return
			}
			items = append(items, k.Value+":"+v.Value)
		}
		slices.Sort(items)
		text = strings.Join(items, ",")
	default:
		r.wrong(name, f.key, "it takes one value%s", map[bool]string{true: ", or a list of them"}[f.typ.Kind() == reflect.Slice])
		return
	}
	r.out[f.env] = given{text: text, line: name.Line}
}

// mine refuses a file of somebody else's.
func mine(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	if uid, foreign := ownerOf(info); foreign {
		return fmt.Errorf("%s: this configuration file belongs to uid %d, neither the server's nor root's: chown it, or name it by --config if you trust it", path, uid)
	}
	return nil
}
