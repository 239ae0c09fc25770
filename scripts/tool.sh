#!/bin/sh
# Prints the path of a development tool at a pinned version, building it first if it isn't in the cache.
#
#   scripts/tool.sh golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint v2.15.0
#
# The cache is outside the clone, so a fresh clone doesn't build tools again. Tools stay out of go.mod, whose versions
# are the program's.
set -eu
name=$1 package=$2 version=$3
dir=${XDG_CACHE_HOME:-$HOME/.cache}/stromboli/tools/$name-$version
if [ ! -x "$dir/$name" ]; then
  echo "building $name $version" >&2
  mkdir -p "$dir"
  tmp=$(mktemp -d "$dir/.tmp-XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  # Outside the module: its go.mod must not decide the tool's dependencies.
  (cd "$tmp" && GOFLAGS=-buildvcs=false GOBIN=$tmp go install "$package@$version" >&2)
  mv "$tmp/$name" "$dir/$name"
fi
printf '%s\n' "$dir/$name"
