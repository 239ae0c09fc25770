package runner_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

const remote = "registry.example/team/agent:1"

// agentArchive is an image in which the fake CLI runs, or, without bash, not.
func agentArchive(t *testing.T, ref string, bash bool) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	files := []string{"lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1", "run/stromboli/shim", "etc/passwd"}
	if bash {
		files = append(files, "bin/bash")
	}
	for _, name := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755}))
	}
	must(t, w.Close())
	return enginetest.Archive(b.Bytes(), ref)
}

func using(image string) func(*stromboli.RunSpec) {
	return func(s *stromboli.RunSpec) { s.Podman.Image = image }
}

// phases are the phases that a run went through.
func (l *life) phases(id string) (phases []stromboli.Phase) {
	l.w.t.Helper()
	events, err := l.store.Events(context.Background(), id, 0, 1000)
	must(l.w.t, err)
	for _, ev := range events {
		var d stromboli.PhaseData
		if ev.Type == stromboli.EventPhase && json.Unmarshal(ev.Data, &d) == nil {
			phases = append(phases, d.Phase)
		}
	}
	return phases
}

// TestPullOnDemand: a run whose image is not here pulls it, and says so.
func TestPullOnDemand(t *testing.T) {
	w := newWorld(t)
	l := w.start(options{patterns: []string{"registry.example/**"}})
	w.engine.Offer(remote, enginetest.Offer{Archive: agentArchive(t, remote, true)})
	run := l.wait(l.submit(`result fine`, using(remote)).ID)
	want(t, run, stromboli.Completed, "")
	if got := l.phases(run.ID); !slices.Equal(got[:3], []stromboli.Phase{"creating", "pulling", "creating"}) {
		t.Errorf("phases %v", got)
	}
	i, err := w.engine.ImageInspect(t.Context(), remote)
	must(t, err)
	if run.ImageDigest == "" || run.ImageDigest != i.Digest {
		t.Errorf("the run's digest is %q, the image's %q", run.ImageDigest, i.Digest)
	}
	events, err := l.store.Events(t.Context(), run.ID, 0, 1000)
	must(t, err)
	n := 0
	for _, ev := range events {
		var p stromboli.ImageProgress
		if ev.Type == stromboli.EventImageProgress {
			must(t, json.Unmarshal(ev.Data, &p))
			if n++; p.Image != remote || p.Stage == "" {
				t.Errorf("%s", ev.Data)
			}
		}
	}
	if n == 0 || n > 10 {
		t.Errorf("%d progress events", n)
	}
	// The next one finds it.
	again := l.wait(l.submit(`result fine`, using(remote)).ID)
	want(t, again, stromboli.Completed, "")
	if n := len(w.engine.Pulls()); n != 1 || slices.Contains(l.phases(again.ID), stromboli.PhasePulling) {
		t.Errorf("%d pulls, %v", n, l.phases(again.ID))
	}
	l.empty()
}

// TestImagesThatMayNotBeUsed are refused before a run exists.
func TestImagesThatMayNotBeUsed(t *testing.T) {
	w := newWorld(t)
	w.engine.Offer(remote, enginetest.Offer{Archive: agentArchive(t, remote, true)})
	l := w.start(options{})
	_, err := l.Submit(t.Context(), me(), submission(`true`, using(remote)))
	if !errors.Is(err, stromboli.ImageMissing) || !strings.Contains(err.Error(), "STROMBOLI_AGENT_ALLOWED_IMAGE_PATTERNS") {
		t.Errorf("without patterns nothing is pulled: %v", err)
	}
	l.stop()
	_, err = w.engine.ImageLoad(t.Context(), bytes.NewReader(agentArchive(t, "localhost/other:1", true)))
	must(t, err)
	l = w.start(options{patterns: []string{"registry.example/team/*"}})
	other, err := w.engine.ImageInspect(t.Context(), "localhost/other:1")
	must(t, err)
	for _, name := range []string{"registry.example/other/agent:1", "python", "evil.example/x", "localhost/other:1", other.ID} {
		if _, err := l.Submit(t.Context(), me(), submission(`true`, using(name))); !errors.Is(err, stromboli.ImageForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.engine.Pulls()); n != 0 {
		t.Errorf("%d pulls", n)
	}
	run := l.wait(l.submit(`result fine`).ID) // the operator's own
	want(t, run, stromboli.Completed, "")
}

// TestPullFailures end the run for its image, with the reason in words.
func TestPullFailures(t *testing.T) {
	w := newWorld(t)
	l := w.start(options{patterns: []string{"registry.example/**"}})
	cut := "registry.example/cut:1"
	w.engine.Offer(cut, enginetest.Offer{Err: &engine.Error{Op: "pull", Message: "unexpected EOF", Kind: engine.ErrRegistry}})
	w.engine.Offer(remote, enginetest.Offer{Archive: agentArchive(t, remote, false)})
	for name, says := range map[string]string{cut: "unexpected EOF", remote: "has no bash", "registry.example/none": "has no image"} {
		run := l.wait(l.submit(`true`, using(name)).ID)
		want(t, run, stromboli.Failed, stromboli.ReasonImage)
		if !strings.Contains(run.Outcome.Error, says) {
			t.Errorf("%s: %s", name, run.Outcome.Error)
		}
	}
	l.empty()
}

// TestCancelWhilePulling ends run and pull at once.
func TestCancelWhilePulling(t *testing.T) {
	w := newWorld(t)
	l := w.start(options{patterns: []string{"registry.example/**"}})
	w.engine.Offer(remote, enginetest.Offer{Gate: make(chan struct{})})
	run := l.submit(`true`, using(remote))
	l.until(run.ID, stromboli.PhasePulling)
	l.cancel(run.ID)
	want(t, l.wait(run.ID), stromboli.Cancelled, stromboli.ReasonRequest)
	l.empty()
}

// TestServerEndsWhilePulling: the next one pulls again and goes on.
func TestServerEndsWhilePulling(t *testing.T) {
	w := newWorld(t)
	o := options{patterns: []string{"registry.example/**"}}
	l := w.start(o)
	w.engine.Offer(remote, enginetest.Offer{Gate: make(chan struct{})})
	run := l.submit(`result fine`, using(remote))
	l.until(run.ID, stromboli.PhasePulling)
	l.eventually("the pull has begun", func() bool { return len(w.engine.Pulls()) == 1 })
	l.stop()
	w.engine.Offer(remote, enginetest.Offer{Archive: agentArchive(t, remote, true)})
	l = w.start(o)
	ended := l.wait(run.ID)
	want(t, ended, stromboli.Completed, "")
	if n := w.starts(ended); n != 1 || len(w.engine.Pulls()) != 2 {
		t.Errorf("%d agents, %d pulls", n, len(w.engine.Pulls()))
	}
	l.empty()
}
