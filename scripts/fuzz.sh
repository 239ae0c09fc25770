#!/bin/sh
# Runs every fuzz target for a while: scripts/fuzz.sh [time per target, default 10s] [package pattern]
# As many at a time as there are CPUs, each with one worker.
set -eu
for_each=${1:-10s}
pattern=${2:-./...}

if [ "${3:-}" = target ]; then # one target, called from below
  package=$4 target=$5
  # At the end of its time Go's fuzzer sometimes reports its own deadline as the target's failure: the coordinator compares the
  # parent context's error with that of the child, which is cancelled a moment later. Nothing was found then: whatever is found
  # is written to testdata and said so, and a failure of the target's own has its file and line before the message.
  if out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" -parallel 1 "$package" < /dev/null 2>&1) ||
    { printf '%s\n' "$out" | grep -qx '    context deadline exceeded' &&
      ! printf '%s\n' "$out" | grep -Eq 'Failing input|panic|_test\.go:|FATAL|signal:'; }; then
    echo "ok   $package $target: $(printf '%s\n' "$out" | sed -n 's/.*execs: \([0-9]*\).*/\1/p' | tail -n 1) executions"
  else
    printf 'FAIL %s %s\n%s\n' "$package" "$target" "$out"
    exit 1
  fi
  exit
fi

go list -f '{{.ImportPath}} {{.Dir}} {{range .TestGoFiles}}{{.}} {{end}}{{range .XTestGoFiles}}{{.}} {{end}}' "$pattern" |
  while read -r package dir files; do
    for file in $files; do
      sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir/$file"
    done | sort -u | while read -r target; do
      echo "$package $target"
    done
  done | xargs -n 2 -P "$(getconf _NPROCESSORS_ONLN)" "$0" "$for_each" "$pattern" target
