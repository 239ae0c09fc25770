package telemetry

import (
	"strings"
	"sync"
)

// other stands for every value of a label beyond those that are counted apart.
const other = "other"

// oneOf makes values of a label a closed set.
type oneOf map[string]bool

func setOf[T ~string](values ...T) oneOf {
	set := make(oneOf, len(values))
	for _, v := range values {
		set[string(v)] = true
	}
	return set
}

func (s oneOf) of(value string) string {
	if s[value] {
		return value
	}
	return other
}

// maxModels bounds the models that are counted apart. Their names come from
// callers, and from what agents say.
const maxModels = 24

// models are the first so many well-formed names that came.
type models struct {
	mu    sync.Mutex
	known map[string]bool
}

func (m *models) of(name string) string {
	if name == "" {
		return "unknown"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.known[name]:
		return name
	case len(m.known) >= maxModels || !wellFormed(name):
		return other
	}
	if m.known == nil {
		m.known = make(map[string]bool)
	}
	m.known[strings.Clone(name)] = true
	return name
}

func wellFormed(name string) bool {
	if len(name) > 64 {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._:@/[]", c) >= 0:
		default:
			return false
		}
	}
	return true
}
