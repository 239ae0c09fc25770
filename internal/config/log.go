package config

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// LogParts are the parts of the server whose log level may be set apart.
func LogParts() []string {
	return []string{"api", "archive", "auth", "egress", "engine", "image", "model", "retention", "runner", "sandbox", "server", "webhook"}
}

// SlogLevel is Level.
func (l Log) SlogLevel() slog.Level {
	level, _ := levelOf(l.Level) // validated
	return level
}

// PartLevels are the levels of Levels, by part.
func (l Log) PartLevels() (map[string]slog.Level, error) {
	levels := make(map[string]slog.Level, len(l.Levels))
	for _, s := range l.Levels {
		part, name, found := strings.Cut(strings.TrimSpace(s), "=")
		if !found {
			return nil, fmt.Errorf("STROMBOLI_LOG_LEVELS: %q is not part=level, such as runner=debug", s)
		}
		if !slices.Contains(LogParts(), part) {
			return nil, fmt.Errorf("STROMBOLI_LOG_LEVELS: there is no part %q; the parts are %s", part, strings.Join(LogParts(), ", "))
		}
		if _, twice := levels[part]; twice {
			return nil, fmt.Errorf("STROMBOLI_LOG_LEVELS: %s has two levels", part)
		}
		level, ok := levelOf(name)
		if !ok {
			return nil, fmt.Errorf("STROMBOLI_LOG_LEVELS: %s: %q is not debug, info, warn or error", part, name)
		}
		levels[part] = level
	}
	return levels, nil
}

func levelOf(name string) (slog.Level, bool) {
	switch name {
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	}
	return slog.LevelInfo, false
}

func (l Log) validate() error {
	if !slices.Contains([]string{"text", "json"}, l.Format) {
		return fmt.Errorf("STROMBOLI_LOG_FORMAT: %q is neither text nor json", l.Format)
	}
	if _, ok := levelOf(l.Level); !ok {
		return fmt.Errorf("STROMBOLI_LOG_LEVEL: %q is not debug, info, warn or error", l.Level)
	}
	_, err := l.PartLevels()
	return err
}
