#!/bin/sh
# Runs every fuzz target for a while: scripts/fuzz.sh [time per target, default 10s] [package pattern]
set -eu
for_each=${1:-10s}
pattern=${2:-./...}
go list -f '{{.ImportPath}} {{.Dir}} {{range .TestGoFiles}}{{.}} {{end}}{{range .XTestGoFiles}}{{.}} {{end}}' "$pattern" |
  while read -r package dir files; do
    for file in $files; do
      sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir/$file"
    done | sort -u | while read -r target; do
      echo "== $package $target"
      go test -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" "$package" < /dev/null
    done
  done
