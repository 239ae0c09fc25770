package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

// Every line tells its context's origin, each part of it once.
func TestLogOrigin(t *testing.T) {
	var out bytes.Buffer
	log := telemetry.NewLog(telemetry.LogConfig{Writer: &out, JSON: true}).Part("runner")
	ctx := stromboli.WithOrigin(t.Context(), stromboli.Origin{RequestID: "req", Tenant: "acme", Principal: "ci"})
	ctx = stromboli.WithOrigin(ctx, stromboli.Origin{RunID: "run-1"})
	log.InfoContext(ctx, "plain")
	log.With("run_id", "run-2").InfoContext(ctx, "with", "tenant", "other")
	log.Info("nobody's")
	var lines []map[string]any
	for d := json.NewDecoder(&out); d.More(); {
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, m)
	}
	want := []map[string]any{
		{"part": "runner", "request_id": "req", "run_id": "run-1", "tenant": "acme", "principal": "ci"},
		{"part": "runner", "request_id": "req", "run_id": "run-2", "tenant": "other", "principal": "ci"},
		{"part": "runner", "request_id": nil, "run_id": nil, "tenant": nil, "principal": nil},
	}
	for i, w := range want {
		for key, value := range w {
			if lines[i][key] != value {
				t.Errorf("line %d: %s is %v, want %v", i, key, lines[i][key], value)
			}
		}
	}
}

func TestLogLevelsChange(t *testing.T) {
	var out bytes.Buffer
	l := telemetry.NewLog(telemetry.LogConfig{Writer: &out, Level: slog.LevelWarn, Parts: map[string]slog.Level{"runner": slog.LevelDebug}})
	runner, api := l.Part("runner"), l.Part("api").With("k", "v")
	said := func() string {
		out.Reset()
		for _, log := range []*slog.Logger{runner, api} {
			log.DebugContext(t.Context(), "debug")
			log.WarnContext(t.Context(), "warn")
		}
		return fmt.Sprint(strings.Count(out.String(), "part=runner"), strings.Count(out.String(), "part=api"))
	}
	if got := said(); got != "2 1" {
		t.Errorf("at first: %s lines", got)
	}
	l.SetLevels(slog.LevelDebug, map[string]slog.Level{"runner": slog.LevelError})
	if got := said(); got != "0 2" {
		t.Errorf("after the change: %s lines", got)
	}
}

// Under journald there is no second time, and each line of text begins with its
// priority.
func TestLogJournal(t *testing.T) {
	var out bytes.Buffer
	log := telemetry.NewLog(telemetry.LogConfig{Writer: &out, Journal: true, Level: slog.LevelDebug}).Part("api").With("k", "v")
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		log.Log(t.Context(), level, "two\nlines")
	}
	want := "<7>level=DEBUG msg=\"two\\nlines\" part=api k=v\n<6>level=INFO msg=\"two\\nlines\" part=api k=v\n" +
		"<4>level=WARN msg=\"two\\nlines\" part=api k=v\n<3>level=ERROR msg=\"two\\nlines\" part=api k=v\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	out.Reset()
	telemetry.NewLog(telemetry.LogConfig{Writer: &out, Journal: true, JSON: true}).Part("api").InfoContext(t.Context(), "m")
	if want := `{"level":"INFO","msg":"m","part":"api"}` + "\n"; out.String() != want {
		t.Errorf("JSON: %s", out.String())
	}
}

func TestToJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	for _, tt := range []struct {
		stream string
		w      io.Writer
		want   bool
	}{
		{name, w, true},
		{"", w, false},
		{name + "0", w, false},
		{name, os.Stdin, false},
		{name, io.Discard, false},
	} {
		if got := telemetry.ToJournal(tt.stream, tt.w); got != tt.want {
			t.Errorf("%q: %v", tt.stream, got)
		}
	}
}

func BenchmarkLogLine(b *testing.B) {
	log := telemetry.NewLog(telemetry.LogConfig{Writer: io.Discard}).Part("api")
	ctx := stromboli.WithOrigin(context.Background(), stromboli.Origin{RequestID: "req", Tenant: "acme", Principal: "ci"})
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(ctx, slog.LevelInfo, "request", slog.String("method", "GET"), slog.Int("status", 200))
	}
}
