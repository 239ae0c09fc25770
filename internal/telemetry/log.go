// Package telemetry is how the server tells of itself: its log, and metrics
// for Prometheus.
//
// It promises that a line which is logged with a context tells whose work it
// is, and that what it costs stays bounded: a metric's labels come from fixed
// sets or are counted, whatever callers and agents send, and a scrape reads
// memory alone. It knows nothing of the server's parts: they tell it what
// happened through functions that the wiring gives them.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// LogConfig makes a Log. Writer is required.
type LogConfig struct {
	Writer io.Writer
	JSON   bool
	// Journal: lines go to systemd's journal, which has a time for each of its
	// own. Text lines begin with their priority as sd-daemon(3) says.
	Journal bool
	Level   slog.Level
	Parts   map[string]slog.Level // those that differ from Level
}

// Log makes the loggers of the server's parts, whose levels may change at any
// time.
type Log struct {
	out slog.Handler

	mu     sync.Mutex
	levels map[string]*slog.LevelVar
	level  slog.Level
	parts  map[string]slog.Level
}

// NewLog returns a Log.
func NewLog(cfg LogConfig) *Log {
	l := &Log{levels: make(map[string]*slog.LevelVar)}
	opts := &slog.HandlerOptions{Level: lowest} // a part's own level decides
	if cfg.Journal {
		opts.ReplaceAttr = withoutTime
	}
	switch {
	case cfg.JSON:
		l.out = slog.NewJSONHandler(cfg.Writer, opts)
	case cfg.Journal:
		l.out = newJournal(cfg.Writer, opts)
	default:
		l.out = slog.NewTextHandler(cfg.Writer, opts)
	}
	l.SetLevels(cfg.Level, cfg.Parts)
	return l
}

const lowest = slog.LevelDebug - 4

// SetLevels changes the level of all parts, at once, also of loggers that were
// handed out: to that of parts, or to level. It may be called at any time.
func (l *Log) SetLevels(level slog.Level, parts map[string]slog.Level) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.level, l.parts = level, parts
	for part, v := range l.levels {
		v.Set(l.of(part))
	}
}

func (l *Log) of(part string) slog.Level {
	if level, ok := l.parts[part]; ok {
		return level
	}
	return l.level
}

// Part is the logger of a part, named in each of its lines.
func (l *Log) Part(name string) *slog.Logger {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.levels[name]
	if v == nil {
		v = new(slog.LevelVar)
		v.Set(l.of(name))
		l.levels[name] = v
	}
	return slog.New(&handler{Handler: l.out, level: v}).With("part", name)
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// ToJournal reports whether w is the stream to systemd's journal that the
// variable JOURNAL_STREAM ("device:inode") names: a program that was started by
// such a service and writes elsewhere has the variable too.
func ToJournal(stream string, w io.Writer) bool {
	device, inode, found := strings.Cut(stream, ":")
	f, isFile := w.(*os.File)
	if !found || !isFile {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && device == strconv.FormatUint(uint64(st.Dev), 10) && inode == strconv.FormatUint(st.Ino, 10) //nolint:unconvert // the type differs by CPU
}

// journal writes text with the priority of its level before each line.
type journal struct {
	handlers [4]slog.Handler
}

func newJournal(w io.Writer, opts *slog.HandlerOptions) journal {
	var j journal
	mu := new(sync.Mutex)
	for i, prefix := range []string{"<7>", "<6>", "<4>", "<3>"} {
		j.handlers[i] = slog.NewTextHandler(&prefixed{mu: mu, w: w, prefix: prefix}, opts)
	}
	return j
}

// Enabled implements slog.Handler.
func (j journal) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (j journal) Handle(ctx context.Context, r slog.Record) error {
	i := 0
	switch {
	case r.Level >= slog.LevelError:
		i = 3
	case r.Level >= slog.LevelWarn:
		i = 2
	case r.Level >= slog.LevelInfo:
		i = 1
	}
	return j.handlers[i].Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (j journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i, h := range j.handlers {
		j.handlers[i] = h.WithAttrs(attrs)
	}
	return j
}

// WithGroup implements slog.Handler.
func (j journal) WithGroup(name string) slog.Handler {
	for i, h := range j.handlers {
		j.handlers[i] = h.WithGroup(name)
	}
	return j
}

// prefixed writes each line, which comes as one write, as one write.
type prefixed struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
	buf    []byte
}

// Write implements io.Writer.
func (p *prefixed) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = append(append(p.buf[:0], p.prefix...), line...)
	if _, err := p.w.Write(p.buf); err != nil {
		return 0, err //nolint:wrapcheck // the writer's own
	}
	return len(line), nil
}
