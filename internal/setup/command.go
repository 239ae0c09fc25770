package setup

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is one call of a tool of the host.
type command struct {
	argv []string
	env  []string
	dir  string
	// line is told each line of output, from one goroutine at a time; may be
	// nil.
	line func(string)
}

// output runs c and returns its standard output, at most 1 MiB of it. An error
// carries the last lines of what the tool said. When ctx ends, the tool and
// the processes that it started are killed.
func (c command) output(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.Dir = c.env, c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var mu sync.Mutex
	said := &tail{}
	out := &lines{mu: &mu, keep: 1 << 20, line: c.line, said: said}
	errs := &lines{mu: &mu, line: c.line, said: said}
	cmd.Stdout, cmd.Stderr = out, errs
	err := cmd.Run()
	out.flush()
	errs.flush()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.kept.String(), fmt.Errorf("%s: %w%s", c.name(), err, said)
	}
	return out.kept.String(), nil
}

func (c command) name() string {
	words := c.argv
	if len(words) > 3 {
		words = words[:3]
	}
	return strings.Join(words, " ")
}

// lines cuts a stream into lines and keeps its beginning.
type lines struct {
	mu      *sync.Mutex
	kept    strings.Builder
	keep    int
	partial []byte
	line    func(string)
	said    *tail
}

// Write never fails: a tool must not die because we look away.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := l.keep - l.kept.Len(); room > 0 {
		l.kept.Write(p[:min(room, len(p))])
	}
	for _, b := range p {
		if b != '\n' && b != '\r' {
			if len(l.partial) < 4096 {
				l.partial = append(l.partial, b)
			}
			continue
		}
		l.emit()
	}
	return len(p), nil
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.emit()
}

func (l *lines) emit() {
	text := strings.TrimSpace(string(l.partial))
	l.partial = l.partial[:0]
	if text == "" {
		return
	}
	l.said.add(text)
	if l.line != nil {
		l.line(text)
	}
}

// tail keeps the last lines of a tool for its error.
type tail struct{ last []string }

func (t *tail) add(line string) {
	if len(t.last) == 20 {
		t.last = t.last[1:]
	}
	t.last = append(t.last, line)
}

// String is empty, or starts with a separator.
func (t *tail) String() string {
	if len(t.last) == 0 {
		return ""
	}
	return ": " + strings.Join(t.last, "\n")
}
