package podman

import (
	"errors"
	"fmt"
	"strings"
)

// confFile is a containers.conf as tables of keys with their values' raw text.
// It reads as much TOML as such files use: tables, keys, strings, numbers,
// booleans, and arrays over several lines.
type confFile struct {
	tables []*confTable
}

type confTable struct {
	name   string
	keys   []string
	values map[string]string
}

// merge lays text over what is there, key by key. After an error nothing of
// text is in it.
func (c *confFile) merge(text string) error {
	var read confFile
	table := ""
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		switch {
		case line == "" || line[0] == '#':
			continue
		case strings.HasPrefix(line, "[["):
			return fmt.Errorf("line %d: arrays of tables are not understood", i+1)
		case line[0] == '[':
			name, _, ok := strings.Cut(line[1:], "]")
			if !ok {
				return fmt.Errorf("line %d: a table's name without an end", i+1)
			}
			table = strings.TrimSpace(name)
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return fmt.Errorf("line %d: neither a table nor a key", i+1)
		}
		value = strings.TrimSpace(value)
		for {
			open, err := openBrackets(value)
			if err != nil {
				return fmt.Errorf("line %d: %w", i+1, err)
			}
			if open == 0 {
				break
			}
			if i++; i == len(lines) {
				return errors.New("an array without an end")
			}
			value += "\n" + lines[i]
		}
		read.set(table, strings.TrimSpace(key), value)
	}
	for _, t := range read.tables {
		for _, k := range t.keys {
			c.set(t.name, k, t.values[k])
		}
	}
	return nil
}

// openBrackets counts the brackets in a value that are still open.
func openBrackets(value string) (int, error) {
	if strings.Contains(value, `"""`) || strings.Contains(value, "'''") {
		return 0, errors.New("strings over several lines are not understood")
	}
	open := 0
	var quote byte
	for i := 0; i < len(value); i++ {
		ch := value[i]
		switch {
		case quote != 0:
			if ch == '\\' && quote == '"' {
				i++
			} else if ch == quote {
				quote = 0
			}
		case ch == '"' || ch == '\'':
			quote = ch
		case ch == '#':
			for i < len(value) && value[i] != '\n' {
				i++
			}
		case ch == '[' || ch == '{':
			open++
		case ch == ']' || ch == '}':
			open--
		}
	}
	if quote != 0 {
		return 0, errors.New("a string without an end")
	}
	return max(0, open), nil
}

func (c *confFile) table(name string) *confTable {
	for _, t := range c.tables {
		if t.name == name {
			return t
		}
	}
	return nil
}

func (c *confFile) has(table, key string) bool {
	t := c.table(table)
	if t == nil {
		return false
	}
	_, ok := t.values[key]
	return ok
}

func (c *confFile) set(table, key, value string) {
	t := c.table(table)
	if t == nil {
		t = &confTable{name: table, values: map[string]string{}}
		c.tables = append(c.tables, t)
	}
	if _, ok := t.values[key]; !ok {
		t.keys = append(t.keys, key)
	}
	t.values[key] = value
}

// String writes the file.
func (c *confFile) String() string {
	var b strings.Builder
	write := func(t *confTable) {
		if t.name != "" {
			fmt.Fprintf(&b, "\n[%s]\n", t.name)
		}
		for _, k := range t.keys {
			fmt.Fprintf(&b, "%s = %s\n", k, t.values[k])
		}
	}
	// Keys without a table must stand before the first one.
	if t := c.table(""); t != nil {
		write(t)
	}
	for _, t := range c.tables {
		if t.name != "" {
			write(t)
		}
	}
	return b.String()
}
