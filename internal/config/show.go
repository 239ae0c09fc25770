package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Setting is one setting's value and where it comes from.
type Setting struct {
	Variable string
	Key      string // in the file
	// Value is a string, bool, int64, float64 or []string; nil for a secret.
	Value  any
	Secret bool // a Secret that is set has a Value of nil
	Set    bool // of a secret: there is one
	Origin Origin
	// Reload: a running server takes a change over on SIGHUP.
	Reload bool
}

// Settings lists every setting in the struct's order. No secret is in it.
func (c *Config) Settings() []Setting {
	var out []Setting
	for _, f := range schema() {
		v := f.of(c)
		s := Setting{Variable: f.env, Key: f.key, Secret: f.secret(), Set: !v.IsZero(), Origin: c.origins[f.env], Reload: f.reload}
		if !s.Secret {
			s.Value = plain(v)
		}
		out = append(out, s)
	}
	return out
}

// Changed lists the variables of settings that differ between c and other,
// those that a running server can take over and those that it can't.
func (c *Config) Changed(other *Config) (reload, restart []string) {
	for _, f := range schema() {
		switch {
		case reflect.DeepEqual(f.of(c).Interface(), f.of(other).Interface()):
		case f.reload:
			reload = append(reload, f.env)
		default:
			restart = append(restart, f.env)
		}
	}
	return reload, restart
}

func (f field) of(c *Config) reflect.Value { return reflect.ValueOf(c).Elem().FieldByIndex(f.index) }

// text is the value as a variable would have it.
func (f field) text(c *Config) string {
	if list, ok := plain(f.of(c)).([]string); ok {
		return strings.Join(list, ",")
	}
	return fmt.Sprint(plain(f.of(c)))
}

func plain(v reflect.Value) any {
	if d, ok := v.Interface().(time.Duration); ok {
		return shortDuration(d)
	}
	switch v.Kind() { //nolint:exhaustive // the rest is shown as text
	case reflect.Bool:
		return v.Bool()
	case reflect.Int, reflect.Int32, reflect.Int64:
		return v.Int()
	case reflect.Float64:
		return v.Float()
	case reflect.Slice:
		out := make([]string, 0, v.Len())
		for i := range v.Len() {
			out = append(out, fmt.Sprint(v.Index(i).Interface()))
		}
		return out
	case reflect.Map:
		out := make(map[string]string, v.Len())
		for _, k := range v.MapKeys() {
			out[fmt.Sprint(k.Interface())] = fmt.Sprint(v.MapIndex(k).Interface())
		}
		return out
	}
	return fmt.Sprint(v.Interface())
}

// shortDuration writes 24h where Go writes 24h0m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
