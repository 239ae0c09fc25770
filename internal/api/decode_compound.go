package api

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
)

// raw reads a value that is passed on as it is, which must be an object. It is
// kept in one form, whatever the order of its names and its spaces.
func (d *decoder) raw(path string, v reflect.Value) {
	var object any
	if err := d.tokens.Decode(&object); err != nil { // the syntax was checked before
		d.fault(path, "must be an object")
		return
	}
	switch o := object.(type) {
	case map[string]any:
		if len(o) == 0 {
			v.SetZero()
			return
		}
		if b, err := encode(o); err == nil {
			v.SetBytes(bytes.TrimSpace(b))
			return
		}
	case []any:
		if len(o) == 0 {
			v.SetZero()
			return
		}
	case nil:
		v.SetZero()
		return
	case string:
		if o == "" {
			v.SetZero()
			return
		}
	}
	d.fault(path, "must be an object")
}

// list reads the elements of a list, of strings or of objects, whose bracket
// is taken.
func (d *decoder) list(path string, v reflect.Value) {
	v.SetLen(0)
	for i := 0; d.tokens.More() && len(d.faults) < maxFaults; i++ {
		tok := d.next()
		if v.Type().Elem().Kind() == reflect.Struct {
			d.element(path+"["+strconv.Itoa(i)+"]", tok, v)
			continue
		}
		s, ok := tok.(string)
		if !ok {
			d.skip(tok)
			if len(d.faults) < maxFaults {
				d.fault(path+"["+strconv.Itoa(i)+"]", "must be a string")
			}
			continue
		}
		v.Set(reflect.Append(v, reflect.ValueOf(s)))
	}
	if len(d.faults) < maxFaults {
		d.next()
	}
}

// element appends one object, whose first token is tok, to the list v.
func (d *decoder) element(path string, tok json.Token, v reflect.Value) {
	if tok != json.Delim('{') {
		d.skip(tok)
		d.fault(path, "must be an object")
		return
	}
	e := reflect.New(v.Type().Elem()).Elem()
	d.object(path, e)
	v.Set(reflect.Append(v, e))
}

// stringMap reads the members of a map of strings whose brace is taken; a null
// member is unset.
func (d *decoder) stringMap(path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	for d.tokens.More() {
		name, _ := d.next().(string)
		tok := d.next()
		if tok == nil {
			continue
		}
		s, ok := tok.(string)
		if !ok {
			d.skip(tok)
			if len(d.faults) < maxFaults {
				d.fault(join(path, name), "must be a string")
			}
			continue
		}
		v.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(s))
	}
	d.next()
}
