package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/policy"
)

// otherCPU says of all images that they are for a CPU that nobody has.
type otherCPU struct{ *enginetest.Fake }

func (e otherCPU) ImageInspect(ctx context.Context, ref string) (engine.Image, error) {
	i, err := e.Fake.ImageInspect(ctx, ref)
	i.OS, i.Architecture = "linux", "m68k"
	return i, err
}

// TestForeignCPU: an image for another CPU is refused by that, and not looked
// into.
func TestForeignCPU(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Engine = otherCPU{c.Engine.(*enginetest.Fake)} })
	_, err := f.Check(t.Context(), plan("/workspace"))
	if !errors.Is(err, stromboli.ImageMissing) || !strings.Contains(err.Error(), "is for linux/m68k") || f.calls.Load() != 0 {
		t.Errorf("%v, %d containers", err, f.calls.Load())
	}
	facts, err := f.FindFacts(t.Context(), glibcImage)
	if err != nil || !strings.Contains(facts.Unusable, "m68k") {
		t.Errorf("%+v, %v", facts, err)
	}
}

// TestPublicFacts: what others learn of an image was found in it.
func TestPublicFacts(t *testing.T) {
	f := newFixture(t, nil)
	_, err := f.engine.ImageImport(t.Context(), tarOf(t, map[string]string{"bin/bash": "bash", "usr/local/bin/claude": "cli"}), "test/cli")
	must(t, err)
	for image, want := range map[string]stromboli.ImageFacts{
		glibcImage:    {Libc: "glibc"},
		"test/musl":   {Libc: "musl"},
		"test/cli":    {CLI: true},
		"test/nobash": {Unusable: "has no bash, which the agent needs to run commands: add it to the image"},
	} {
		i, err := f.engine.ImageInspect(t.Context(), image)
		must(t, err)
		if _, known := f.KnownFacts(i.Digest); known {
			t.Errorf("%s is known before anybody has looked", image)
		}
		got, err := f.FindFacts(t.Context(), image)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", image, got, err)
		}
		if got, known := f.KnownFacts(i.Digest); !known || got != want {
			t.Errorf("%s: %+v, known %v", image, got, known)
		}
	}
}

// TestAbsentImage: everything but the image is judged all the same.
func TestAbsentImage(t *testing.T) {
	f := newFixture(t, nil)
	p := plan("/mnt/x", policy.Mount{Source: f.dir(t, "v", 1234, 1234), Target: "/mnt/x"})
	p.Image = "registry.example/not/here:1"
	checked, err := f.Check(t.Context(), p)
	if !errors.Is(err, ErrImageAbsent) || checked.Workspace() != `volume "`+f.root+`/v" at "/mnt/x"` || f.calls.Load() != 0 {
		t.Errorf("%v, %s", err, checked.Workspace())
	}
	p.Mounts[0].Source = f.root + "/none"
	if _, err := f.Check(t.Context(), p); !errors.Is(err, stromboli.Invalid) || errors.Is(err, ErrImageAbsent) {
		t.Errorf("a volume that isn't there: %v", err)
	}
}

// TestShortName: what the engine doesn't complete is Docker Hub's.
func TestShortName(t *testing.T) {
	f := newFixture(t, nil)
	_, err := f.engine.ImageImport(t.Context(), tarOf(t, map[string]string{"bin/bash": "bash"}), "docker.io/library/tool:latest")
	must(t, err)
	p := plan("/workspace")
	p.Image = "tool"
	checked, err := f.Check(t.Context(), p)
	if err != nil || len(checked.ImageNames) != 1 || checked.ImageNames[0] != "docker.io/library/tool:latest" {
		t.Errorf("%v, %v", checked.ImageNames, err)
	}
}

// TestCheckedImageIsUsed: a name that comes to mean another image after the
// check changes nothing.
func TestCheckedImageIsUsed(t *testing.T) {
	f := newFixture(t, nil)
	checked, err := f.Check(t.Context(), plan("/workspace"))
	must(t, err)
	before, err := f.engine.ImageInspect(t.Context(), glibcImage)
	must(t, err)
	_, err = f.engine.ImageImport(t.Context(), tarOf(t, map[string]string{"bin/bash": "another"}), glibcImage)
	must(t, err)
	spec := f.containerSpec(Spec{ID: "x", Plan: plan("/workspace")}, record{ID: "x"}, checked, nil)
	if spec.Image != before.ID {
		t.Errorf("the sandbox is made from %s, checked was %s", spec.Image, before.ID)
	}
}

// TestOlderFacts: facts that an older server has kept lack some of today's.
func TestOlderFacts(t *testing.T) {
	f := newFixture(t, nil)
	known, err := f.facts.of(t.Context(), glibcImage)
	must(t, err)
	must(t, os.WriteFile(f.facts.file(known.Digest), []byte(`{"Digest":"`+known.Digest+`","Bash":false}`), 0o600))
	again, err := New(f.cfg).facts.of(t.Context(), glibcImage)
	if err != nil || !again.Bash {
		t.Errorf("%+v, %v", again, err)
	}
}
