package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// prefix is what the variables of settings begin with.
const prefix = "STROMBOLI_"

// field is a setting as the struct declares it.
type field struct {
	env, key string // STROMBOLI_SERVER_MAX_BODY, server.max_body
	index    []int
	typ      reflect.Type
	value    string // by default; empty: the zero value, or what Load makes of it
	reload   bool
	noEffect string

	owner, name string // the types' names: Server, MaxBody
}

func (f field) secret() bool { return f.typ == reflect.TypeFor[Secret]() }

// schema lists the settings in the struct's order.
func schema() []field { return fieldsOf(reflect.TypeFor[Config](), "", nil) }

func variables() []string {
	var out []string
	for _, f := range schema() {
		out = append(out, f.env)
	}
	return out
}

func fieldsOf(t reflect.Type, section string, index []int) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		at := append(append([]int{}, index...), i)
		if below, ok := f.Tag.Lookup("envPrefix"); ok {
			out = append(out, fieldsOf(f.Type, section+below, at)...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("env"), ",")
		if name == "" {
			continue
		}
		out = append(out, field{
			env: section + name, key: keyOf(section, name), index: at, typ: f.Type, value: f.Tag.Get("envDefault"),
			reload: f.Tag.Get("reload") == "true", noEffect: f.Tag.Get("noeffect"), owner: t.Name(), name: f.Name,
		})
	}
	return out
}

// keyOf is a setting's place in the file: each envPrefix is a section.
func keyOf(section, name string) string {
	key := strings.ToLower(name)
	if section == "" {
		return strings.TrimPrefix(key, strings.ToLower(prefix))
	}
	return strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(section, prefix), "_")) + "." + key
}

// parse reads the values into c. Each error names its variable.
func parse(c *Config, vars map[string]string) error {
	if env.ParseWithOptions(c, env.Options{Environment: vars}) == nil {
		return nil
	}
	// The library names Go's fields, of which several have one name: each value
	// is read once more, alone.
	var errs []error
	for _, f := range schema() {
		if vars[f.env] == "" {
			continue
		}
		if env.ParseWithOptions(&Config{}, env.Options{Environment: map[string]string{f.env: vars[f.env]}}) != nil {
			errs = append(errs, fmt.Errorf("%s: %s is not %s", f.env, f.shown(vars[f.env]), kindOf(f.typ)))
		}
	}
	return errors.Join(errs...)
}

// shown is a value as an error may show it.
func (f field) shown(value string) string {
	if f.secret() {
		return Secret(value).String()
	}
	if len(value) > 64 {
		value = value[:64] + "…"
	}
	return fmt.Sprintf("%q", value)
}

func kindOf(t reflect.Type) string {
	if t == reflect.TypeFor[time.Duration]() {
		return "a duration such as 90s, 30m or 1h30m"
	}
	switch t.Kind() { //nolint:exhaustive // the rest reads like text
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	}
	return "readable"
}
