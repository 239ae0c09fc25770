package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tomblancdev/stromboli"
)

// The decoder reads a body into a struct by the struct's json tags, more
// strictly and more mildly than encoding/json: names are exact and unknown
// ones refused, types are exact; but null, "", {} and [] mean unset everywhere,
// because generated clients send them. It reports every fault with its path.

const (
	maxFaults    = 20 // reported per body
	maxJSONDepth = 64
)

// vocabulary says what is known of a contract beyond a struct's fields, by the
// field's path, such as "claude.agents".
type vocabulary struct {
	later   func(path string) bool // in the contract, refused when set
	ignored func(path string) bool // accepted whatever it holds
}

type decoder struct {
	vocabulary
	tokens *json.Decoder
	faults []*stromboli.Error
}

// decode reads body, one JSON object, into the struct that into points to.
func decode(body []byte, into any, v vocabulary) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return stromboli.Errorf(stromboli.Invalid, "the body is empty; it must be a JSON object")
	}
	if !utf8.Valid(body) {
		return stromboli.Errorf(stromboli.Invalid, "the body is not valid UTF-8")
	}
	if err := wellFormed(body); err != nil {
		return err
	}
	d := &decoder{vocabulary: v, tokens: json.NewDecoder(bytes.NewReader(body))}
	d.tokens.UseNumber()
	if d.next() != json.Delim('{') {
		return stromboli.Errorf(stromboli.Invalid, "the body must be a JSON object")
	}
	d.object("", reflect.ValueOf(into).Elem())
	return d.err()
}

// wellFormed checks the syntax of the whole body, so that the walk over its
// tokens can't meet an error, and its depth, so that the walk can recurse.
func wellFormed(body []byte) error {
	var skip skipped
	err := json.Unmarshal(body, &skip)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return stromboli.Errorf(stromboli.Invalid, "malformed JSON at byte %d: %s", syntax.Offset, syntax.Error())
	}
	if err != nil {
		return stromboli.Errorf(stromboli.Invalid, "malformed JSON: %s", err.Error())
	}
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxJSONDepth {
				return stromboli.Errorf(stromboli.Invalid, "the JSON is nested more than %d levels deep", maxJSONDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// skipped is a value of which only the syntax matters.
type skipped struct{}

// UnmarshalJSON takes anything.
func (*skipped) UnmarshalJSON([]byte) error { return nil }

// object reads the members of an object whose brace is taken.
func (d *decoder) object(path string, v reflect.Value) {
	for d.tokens.More() && len(d.faults) < maxFaults {
		name, _ := d.next().(string)
		member := join(path, name)
		field, known := fieldByName(v, name)
		switch {
		case known && field.Type() == reflect.TypeFor[json.RawMessage]():
			d.raw(member, field)
		case known:
			d.value(member, field)
		case d.ignored(member):
			d.skip(d.next())
		case d.later(member):
			if !d.unset(d.next()) {
				d.faults = append(d.faults, stromboli.Errorf(stromboli.NotSupported, "%s is not supported by this version", member))
				d.detail(member, "not supported by this version")
			}
		default:
			d.skip(d.next())
			d.fault(member, "unknown field")
		}
	}
	if len(d.faults) < maxFaults {
		d.next()
	}
}

// value reads one value into v, which becomes zero when the value means unset.
func (d *decoder) value(path string, v reflect.Value) {
	tok := d.next()
	if tok == nil || tok == "" {
		v.SetZero()
		return
	}
	open, compound := tok.(json.Delim)
	if compound && !d.tokens.More() {
		d.next()
		v.SetZero()
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	var err error
	switch {
	case v.Kind() == reflect.Struct && open == '{':
		d.object(path, v)
		return
	case v.Kind() == reflect.Slice && open == '[':
		d.list(path, v)
		return
	case v.Kind() == reflect.Map && open == '{':
		d.stringMap(path, v)
		return
	case compound:
		d.skip(tok)
		err = wanted(v)
	default:
		err = scalar(tok, v)
	}
	if err != nil {
		d.fault(path, err.Error())
	}
}

// scalar puts a string, number or truth value into v, which is of its kind.
func scalar(tok json.Token, v reflect.Value) error {
	switch t := tok.(type) {
	case string:
		if v.Type() == reflect.TypeFor[stromboli.Duration]() {
			dur, err := time.ParseDuration(t)
			if err != nil {
				return wanted(v)
			}
			v.SetInt(int64(dur))
			return nil
		}
		if v.Kind() == reflect.String {
			if allowed := enum(v.Type()); allowed != nil && !slices.Contains(allowed, t) {
				return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
			}
			v.SetString(t)
			return nil
		}
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(t)
			return nil
		}
	case json.Number:
		return number(t.String(), v)
	}
	return wanted(v)
}

func number(s string, v reflect.Value) error {
	switch {
	case v.Type() == reflect.TypeFor[stromboli.Duration]():
	case v.Kind() == reflect.Int:
		n, err := strconv.ParseInt(s, 10, 32)
		if errors.Is(err, strconv.ErrRange) {
			return errors.New("is out of range")
		}
		if err == nil {
			v.SetInt(n)
			return nil
		}
	case v.Kind() == reflect.Float64:
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return errors.New("is out of range")
		}
		v.SetFloat(f)
		return nil
	}
	return wanted(v)
}

// wanted names the type that a field must have.
func wanted(v reflect.Value) error {
	if v.Type() == reflect.TypeFor[stromboli.Duration]() {
		return errors.New(`must be a duration such as "90s" or "5m"`)
	}
	switch v.Kind() {
	case reflect.String:
		return errors.New("must be a string")
	case reflect.Bool:
		return errors.New("must be true or false")
	case reflect.Int:
		return errors.New("must be an integer, without fraction or exponent")
	case reflect.Float64:
		return errors.New("must be a number")
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Struct {
			return errors.New("must be a list of objects")
		}
		return errors.New("must be a list of strings")
	case reflect.Map:
		return errors.New("must be an object whose values are strings")
	default:
		return errors.New("must be an object")
	}
}

// enum returns the values of a string type that has a closed set of them.
func enum(t reflect.Type) []string {
	switch t {
	case reflect.TypeFor[stromboli.OnDisconnect]():
		return []string{string(stromboli.OnDisconnectContinue), string(stromboli.OnDisconnectCancel)}
	case reflect.TypeFor[stromboli.InputFormat]():
		return []string{string(stromboli.InputText), string(stromboli.InputStreamJSON)}
	case reflect.TypeFor[stromboli.OutputFormat]():
		return []string{string(stromboli.OutputText), string(stromboli.OutputJSON), string(stromboli.OutputStreamJSON)}
	}
	return nil
}

// unset takes the rest of a value and reports whether it means unset: null,
// "", false, {}, [] and objects of nothing else.
func (d *decoder) unset(tok json.Token) bool {
	switch tok {
	case nil, "", false:
		return true
	case json.Delim('['):
		empty := !d.tokens.More()
		d.skip(tok)
		return empty
	case json.Delim('{'):
		empty := true
		for d.tokens.More() {
			d.next()
			if !d.unset(d.next()) {
				empty = false
			}
		}
		d.next()
		return empty
	}
	return false
}

// skip takes the rest of the value that tok begins.
func (d *decoder) skip(tok json.Token) {
	depth := 0
	for {
		switch tok {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth <= 0 {
			return
		}
		tok = d.next()
	}
}

// next returns the next token. The syntax was checked before, so that the only
// error is the end, which callers don't run into.
func (d *decoder) next() json.Token {
	tok, err := d.tokens.Token()
	if err != nil && !errors.Is(err, io.EOF) {
		return json.Delim('}')
	}
	return tok
}

func (d *decoder) fault(path, message string) {
	d.faults = append(d.faults, stromboli.FieldError(path, "%s", message))
}

func (d *decoder) detail(path, message string) {
	last := d.faults[len(d.faults)-1]
	last.Details = []stromboli.Detail{{Field: path, Message: message}}
}

// err joins the faults: the first one's code, everybody's message and details.
func (d *decoder) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	all := d.faults[0]
	for _, f := range d.faults[1:] {
		all.Message += "; " + f.Message
		all.Details = append(all.Details, f.Details...)
	}
	return all
}

// join extends a path by a member's name, which may be anything at all.
func join(path, name string) string {
	plain := name != "" && len(name) <= 64
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			plain = false
			break
		}
	}
	if !plain {
		if len(name) > 64 {
			name = strings.ToValidUTF8(name[:64], "") + "…"
		}
		name = strconv.Quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

func fieldByName(v reflect.Value, name string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if tag == name && tag != "-" && tag != "" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}
