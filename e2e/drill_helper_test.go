package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// runbook is the operators' document: its commands are executed as they stand
// there.
type runbook struct {
	t        *testing.T
	s        *server
	sections map[string]section // by heading
	done     map[string]bool    // commands that were executed
	env      map[string]string  // what the commands take from the operator
	units    map[string]func()  // what systemctl does, by its arguments
	bin      string             // a directory of programs
	acts     chan act
}

type section struct {
	text   string
	blocks []string // its commands
}

// act is a call of systemctl's.
type act struct {
	what string
	done chan bool
}

// openRunbook reads the document, and stands in for the init system: units are
// the test's.
func openRunbook(t *testing.T, s *server) *runbook {
	t.Helper()
	b, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(b), "\n# Runbook\n")
	if !found {
		t.Fatal("there is no runbook")
	}
	r := &runbook{t: t, s: s, sections: map[string]section{}, done: map[string]bool{}, env: map[string]string{}, units: map[string]func(){}, acts: make(chan act)}
	commands := regexp.MustCompile("(?s)\n```sh\n(.*?)\n```\n")
	for i, part := range strings.Split(text, "\n## ") {
		heading, body, _ := strings.Cut(part, "\n")
		if i == 0 {
			heading = ""
		}
		sec := section{text: body}
		for _, m := range commands.FindAllStringSubmatch(body, -1) {
			sec.blocks = append(sec.blocks, m[1])
		}
		r.sections[heading] = sec
	}
	r.programs()
	return r
}

// programs makes the directory with stromboli and systemctl.
func (r *runbook) programs() {
	r.t.Helper()
	r.bin = r.t.TempDir()
	socket := filepath.Join(r.s.dir, "units.sock")
	l, err := new(net.ListenConfig).Listen(r.t.Context(), "unix", socket)
	if err != nil {
		r.t.Fatal(err)
	}
	init := &httptest.Server{Listener: l, Config: &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		a := act{strings.ReplaceAll(strings.Trim(q.URL.Path, "/"), "/", " "), make(chan bool, 1)}
		select {
		case r.acts <- a:
			if !<-a.done {
				w.WriteHeader(http.StatusNotFound)
			}
		case <-q.Context().Done():
		}
	})}}
	init.Start()
	r.t.Cleanup(init.Close)
	script := fmt.Sprintf("#!/bin/sh\nexec curl -fsS -X POST --unix-socket %s http://init/$1/$2\n", socket)
	if err := os.WriteFile(filepath.Join(r.bin, "systemctl"), []byte(script), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(suite.bin, filepath.Join(r.bin, "stromboli")); err != nil {
		r.t.Fatal(err)
	}
}

// run executes a section's nth commands and returns what they print.
func (r *runbook) run(heading string, n int) string {
	r.t.Helper()
	out, err := r.try(heading, n)
	if err != nil {
		r.t.Fatalf("%s, commands %d: %v: %s", heading, n, err, out)
	}
	return out
}

// prelude is what all commands take for granted.
func (r *runbook) prelude() string {
	r.done[r.sections[""].blocks[0]] = true
	return r.sections[""].blocks[0] + "\n"
}

func (r *runbook) try(heading string, n int) (string, error) {
	r.t.Helper()
	sec, ok := r.sections[heading]
	if !ok || n >= len(sec.blocks) {
		r.t.Fatalf("the runbook has no commands %d in %q", n, heading)
	}
	r.done[sec.blocks[n]] = true
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-u", "-c", r.prelude()+sec.blocks[n])
	cmd.Env = append(cmd.Env, r.s.env...)
	cmd.Env = append(cmd.Env, "STROMBOLI_URL="+r.s.url, "PATH="+r.bin+":"+os.Getenv("PATH"))
	for name, value := range r.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var out syncBuffer
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.WaitDelay = &out, &out, r.s.dir, time.Second
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			return out.tail(1 << 20), err
		case a := <-r.acts: // here, since it may fail the test
			do := r.units[a.what]
			if do != nil {
				do()
			}
			a.done <- do != nil
		}
	}
}

// says checks that a section tells of something that was seen.
func (r *runbook) says(heading string, what ...string) {
	r.t.Helper()
	for _, w := range what {
		if !strings.Contains(r.sections[heading].text, "`"+w+"`") {
			r.t.Errorf("%s says nothing of %s", heading, w)
		}
	}
}

// metrics waits for the sample that a section names for the fault, or for its
// end.
func (r *runbook) metric(heading string, well bool) {
	r.t.Helper()
	want := map[bool]string{false: "0", true: "1"}[well]
	m := regexp.MustCompile("`(stromboli_component_up\\{component=\"[a-z]+\"\\} " + want + ")`").FindStringSubmatch(r.sections[heading].text)
	if m == nil {
		r.t.Fatalf("%s names no metric that becomes %s", heading, want)
	}
	waitFor(r.t, m[1], func() bool { return strings.Contains(scrape(r.t, r.s.url+"/metrics"), "\n"+m[1]+"\n") })
}

// over waits until a section's last commands say that it is over.
func (r *runbook) over(heading string) {
	r.t.Helper()
	last := len(r.sections[heading].blocks) - 1
	waitFor(r.t, heading+" to be over", func() bool {
		_, err := r.try(heading, last)
		return err == nil
	})
}

// complete checks that no commands of the sections were left out.
func (r *runbook) complete(headings ...string) {
	r.t.Helper()
	for _, h := range headings {
		if len(r.sections[h].blocks) == 0 {
			r.t.Errorf("the runbook has no commands in %q", h)
		}
		for _, b := range r.sections[h].blocks {
			if !r.done[b] {
				r.t.Errorf("nobody has executed, of %q:\n%s", h, b)
			}
		}
	}
}

// reasons asks why no run could start; nil: one could.
func (r *runbook) reasons() string {
	r.t.Helper()
	a := r.s.send(r.t, "GET", "/readyz", "")
	if a.status == http.StatusOK {
		return ""
	}
	return string(a.want(r.t, http.StatusServiceUnavailable).body)
}

// unready waits until /readyz names a part.
func (r *runbook) unready(part string) {
	r.t.Helper()
	waitFor(r.t, "/readyz to name "+part, func() bool { return strings.Contains(r.reasons(), `"`+part+": ") })
	r.s.send(r.t, "GET", "/livez", "").want(r.t, http.StatusOK)
}
