package e2e_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
)

// probe has the agent run a bash script in a sandbox, and returns the run and
// what the script printed. Files lie at /probe, read-only, beside the script.
func (s *server) probe(script string, files map[string]string, change ...func(*stromboli.RunSpec)) (client.Job, string) {
	s.t.Helper()
	in := s.probeSpec(script, files, change...)
	job, err := s.c.Run(s.ctx(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	if job.Status != stromboli.Completed {
		s.t.Fatalf("the probe's run: %s, %s, output %q", job.Status, job.Error, job.Output)
	}
	return job, s.probed(job.SessionID)
}

// probeSpec is the run of probe, to be submitted in another way.
func (s *server) probeSpec(script string, files map[string]string, change ...func(*stromboli.RunSpec)) stromboli.RunSpec {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.volumes, "probe")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	probeWrite(s.t, dir, map[string]string{"run.sh": script})
	probeWrite(s.t, dir, files)
	in := spec(bash("bash /probe/run.sh > /workspace/out.txt 2>&1"), text("probed"))
	in.Podman.Volumes = []string{dir + ":/probe:ro"}
	for _, c := range change {
		c(&in)
	}
	return in
}

// probed reads what a session's last probe printed.
func (s *server) probed(sessionID string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.data, "sessions", sessionID, "workspace", "out.txt"))
	if err != nil {
		s.t.Fatalf("the probe printed nothing: %v", err)
	}
	return string(b)
}

func probeWrite(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// probeLines reads "name=value" lines.
func probeLines(out string) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			m[name] = value
		}
	}
	return m
}

func itoa(n int) string { return strconv.Itoa(n) }
