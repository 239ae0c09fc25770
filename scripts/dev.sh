#!/bin/sh
# Serves, and builds and serves again whenever a source file changes. Runs survive that: a server that ends leaves its
# sandboxes to the next one. Arguments go to `stromboli serve`.
set -eu
server=
stop() {
  if [ -n "$server" ]; then
    kill -TERM "$server" 2> /dev/null || true
    wait "$server" 2> /dev/null || true
    server=
  fi
}
trap 'stop; exit 0' INT TERM
trap stop EXIT
mark=$(mktemp)
while :; do
  touch "$mark"
  if make --no-print-directory build; then
    stop
    scripts/with-limits.sh bin/stromboli serve "$@" &
    server=$!
  fi
  while [ -z "$(find . -path ./.git -prune -o -path ./build -prune -o -path ./bin -prune -o \
    \( -name '*.go' -o -name '*.sql' -o -name go.mod -o -name Containerfile \) -newer "$mark" -print -quit)" ]; do
    sleep 1
  done
  echo "changed: building again" >&2
done
