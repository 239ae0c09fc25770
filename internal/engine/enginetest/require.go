package enginetest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// RequirePodman skips the test on a machine without Podman, unless
// STROMBOLI_TEST_REQUIRE says that it must be there: then it fails.
func RequirePodman(tb testing.TB) {
	tb.Helper()
	for _, name := range []string{"podman", "/usr/bin/podman"} {
		if _, err := exec.LookPath(name); err == nil {
			return
		}
	}
	Missing(tb, "podman", "Podman is not installed")
}

// Missing skips the test because of something that this machine lacks, or
// fails it where STROMBOLI_TEST_REQUIRE, a comma-separated list, has its name.
func Missing(tb testing.TB, name, why string) {
	tb.Helper()
	if slices.Contains(strings.Split(os.Getenv("STROMBOLI_TEST_REQUIRE"), ","), name) {
		tb.Fatal(why)
	}
	tb.Skip(why)
}
