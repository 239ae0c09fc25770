#!/bin/sh
# Prints the path of Prometheus's promtool: the one on PATH, else the one of Debian's package, taken out of it into the
# cache of tools. Prints nothing where neither can be had.
set -u
command -v promtool && exit 0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/stromboli/tools/promtool
if [ ! -x "$cache/promtool" ]; then
  command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || exit 0
  mkdir -p "$cache"
  tmp=$(mktemp -d "$cache/.tmp-XXXXXX") || exit 0
  trap 'rm -rf "$tmp"' EXIT
  (cd "$tmp" && apt-get download prometheus > /dev/null 2>&1 && dpkg-deb -x prometheus_*.deb x) || exit 0
  mv "$tmp/x/usr/bin/promtool" "$cache/promtool" || exit 0
fi
printf '%s\n' "$cache/promtool"
