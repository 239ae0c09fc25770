package sandbox

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// TestStrays: a container that an engine finished for a server that had died
// is removed; what this server answers for, and what is another's, stays.
func TestStrays(t *testing.T) {
	f := newFixture(t, nil)
	create := func(name, instance, sandbox string) {
		labels := map[string]string{labelInstance: instance}
		if sandbox != "" {
			labels[labelSandbox] = sandbox
		}
		_, err := f.engine.Create(t.Context(), engine.ContainerSpec{Name: name, Image: glibcImage, Command: []string{"/x"}, Labels: labels})
		must(t, err)
	}
	create("stray", "test", "s1")
	create("ours", "test", "s2")
	create("probe", "test", "")
	create("other", "another server", "s3")
	f.claim(map[string]bool{"s2": true})
	must(t, f.removeStrays(t.Context()))
	left := map[string]bool{}
	all, err := f.engine.List(t.Context(), nil)
	must(t, err)
	for _, c := range all {
		left[c.Name] = true
	}
	if left["stray"] || !left["ours"] || !left["probe"] || !left["other"] {
		t.Errorf("left: %v", left)
	}
	// A look at an image is a stray once it was seen for long, whatever the
	// engine's clock says of its age.
	old := engine.Container{ID: "old", Created: time.Now().Add(-time.Hour)}
	if f.stray(old) {
		t.Error("it has only just been seen")
	}
	f.probes["old"] = time.Now().Add(-2 * probeAge)
	f.probes["over"] = f.probes["old"]
	f.forgetProbes([]engine.Container{old})
	if old.Created = time.Now().Add(time.Hour); !f.stray(old) || len(f.probes) != 1 {
		t.Errorf("an old look is no stray, or one is remembered that is over: %v", f.probes)
	}
}
