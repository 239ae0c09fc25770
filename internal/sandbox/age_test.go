package sandbox

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAge: a sandbox of an earlier server that, by the clock on the wall, is
// yet to be made is new, and not of a negative age.
func TestAge(t *testing.T) {
	f := newFixture(t, nil)
	for _, c := range []struct{ ago, least, most time.Duration }{
		{time.Minute, time.Minute, time.Hour}, {-time.Hour, 0, time.Minute},
	} {
		rec := record{ID: "s" + c.ago.String(), Token: "t", CreatedAt: time.Now().Add(-c.ago)}
		must(t, os.MkdirAll(filepath.Join(f.Manager.dir(rec.ID), "run"), 0o700))
		box, err := f.listen(rec)
		must(t, err)
		if age := box.Age(); age < c.least || age > c.most {
			t.Errorf("made %s ago, its age is %s", c.ago, age)
		}
		must(t, f.Release(box))
	}
}
