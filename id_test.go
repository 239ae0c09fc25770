package stromboli_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// FuzzRunID: an id of a path is the one spelling of one run, or nobody's.
func FuzzRunID(f *testing.F) {
	id := stromboli.NewRunID(time.UnixMilli(1_700_000_000_000))
	for _, s := range []string{id, "job-" + id[4:], strings.ToUpper(id), "run-", "run-../../etc/passwd", "", "run-" + strings.Repeat("z", 26), id + "\x00", "run-00000000000000\r00000000000", "job-00000000000000000000000\xff00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := stromboli.ParseRunID(s)
		if !ok {
			return
		}
		if got != "run-"+s[4:] || strings.ContainsFunc(got[4:], func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }) {
			t.Fatalf("%q is taken for %q", s, got)
		}
		if again, ok := stromboli.ParseRunID(stromboli.JobID(got)); !ok || again != got {
			t.Fatalf("%q has the job %q, which is %q", got, stromboli.JobID(got), again)
		}
	})
}
