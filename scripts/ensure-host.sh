#!/bin/sh
# Installs what this machine lacks for a purpose, after saying what and why.
#
#   scripts/ensure-host.sh run     what a server with sandboxes needs
#   scripts/ensure-host.sh test    that, and what the tests need on top
#
# Debian 12 and Ubuntu 24.04 or newer: installs with apt-get, as root directly, else with sudo. Elsewhere it names what
# is missing. With nothing missing it looks at a dozen files and says nothing.
set -eu

purpose=${1:-run}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

say() { printf 'ensure-host: %s\n' "$*" >&2; }
has() { command -v "$1" > /dev/null 2>&1; }
any() { for f in "$@"; do [ -e "$f" ] && return 0; done; return 1; }

packages=
reasons=
need() { # package, why
  packages="$packages $1"
  reasons="$reasons
  $1: $2"
}

has podman || need podman "the container engine that runs the sandboxes"
# Asked for by name: the other runtime that podman takes refuses cgroup v1 and hybrid machines.
has runc || has crun || need runc "the OCI runtime under podman"
if ! has runc && has crun && [ ! -f /sys/fs/cgroup/cgroup.controllers ]; then
  need runc "the OCI runtime under podman: crun refuses this machine's cgroups"
fi
any /usr/lib/podman/netavark /usr/libexec/podman/netavark || has netavark || need netavark "podman's network back end"
any /usr/lib/podman/aardvark-dns /usr/libexec/podman/aardvark-dns || has aardvark-dns ||
  need aardvark-dns "name resolution between containers"
has iptables || has nft || need iptables "packet rules for netavark"
any /usr/libexec/podman/catatonit /usr/lib/podman/catatonit || has catatonit ||
  need catatonit "the init of podman's own pause process"
has newuidmap || need uidmap "user namespaces of ordinary users"
has slirp4netns || has pasta || need slirp4netns "network of ordinary users' containers"
has mmdebstrap || ! has apt-get || need mmdebstrap "makes the agent image's base where no container registry answers"
any /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt ||
  need ca-certificates "trust in the registries that packages come from"

registry_configured() {
  env | grep -iq '^npm_config_registry=.' ||
    grep -Eqs '^[[:space:]]*registry[[:space:]]*=' "${HOME:-/nonexistent}/.npmrc" /usr/etc/npmrc /usr/local/etc/npmrc /etc/npmrc
}
has npm || registry_configured || need npm "fetches the agent CLI and the image's Node.js (no npm registry is configured)"

if [ "$purpose" = test ]; then
  has gcc || need gcc "the race detector needs cgo"
  any /usr/include/stdlib.h || need libc6-dev "C headers for the race detector"
fi

uid=$(id -u)
as_root() {
  if [ "$uid" -eq 0 ]; then
    "$@"
  elif [ -n "${CI:-}" ]; then
    sudo -n "$@"
  else
    sudo "$@"
  fi
}

supported() {
  has apt-get && [ -r /etc/os-release ] || return 1
  # Sourced in a subshell: its names are common ones.
  (
    . /etc/os-release
    case "${ID:-}" in
      debian) min=12 ;;
      ubuntu) min=24 ;;
      *) exit 1 ;;
    esac
    # Debian testing has no number.
    major=${VERSION_ID:-99}
    [ "${major%%.*}" -ge "$min" ]
  )
}

if [ -n "$packages" ]; then
  say "missing on this machine:$reasons"
  if ! supported; then
    say "this is not Debian 12+ or Ubuntu 24.04+: install the equivalents of$packages, then try again"
    exit 1
  fi
  if [ "$uid" -ne 0 ] && ! has sudo; then
    say "neither root nor sudo is here; as root: apt-get install --no-install-recommends$packages"
    exit 1
  fi
  say "installing$packages"
  install() {
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600 \
      install -y --no-install-recommends $packages >&2 < /dev/null
  }
  # A fresh machine has no lists; one with old lists may ask for files that are gone.
  # shellcheck disable=SC2086
  if ! apt-get -qq --simulate install --no-install-recommends $packages > /dev/null 2>&1 || ! install; then
    say "fetching package lists"
    as_root apt-get -qq -o DPkg::Lock::Timeout=600 update >&2 < /dev/null
    install
  fi
fi

# An ordinary user needs ranges of subordinate ids: a sandbox has more than one user.
if [ "$uid" -ne 0 ]; then
  user=$(id -un)
  if ! grep -Eqs "^($user|$uid):" /etc/subuid || ! grep -Eqs "^($user|$uid):" /etc/subgid; then
    start=$(cat /etc/subuid /etc/subgid 2> /dev/null |
      awk -F: 'BEGIN { m = 100000 } NF == 3 && $2 < 2147483647 && $2 + $3 > m { m = $2 + $3 } END { print m }')
    range=$start-$((start + 65535))
    say "$user has no subordinate uid and gid range (/etc/subuid, /etc/subgid): adding $range"
    if ! has sudo; then
      say "as root: usermod --add-subuids $range --add-subgids $range $user"
      exit 1
    fi
    as_root usermod --add-subuids "$range" --add-subgids "$range" "$user"
  fi
fi

# Cargo for the end-to-end tests, without being installed: see test-cargo.sh.
if [ "$purpose" = test ] && has apt-get; then
  cargo=${STROMBOLI_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/stromboli}/tests/cargo
  if ! "$(dirname "$0")/test-cargo.sh" "$cargo"; then
    say "fetching package lists"
    as_root apt-get -qq -o DPkg::Lock::Timeout=600 update >&2 < /dev/null
    "$(dirname "$0")/test-cargo.sh" "$cargo"
  fi
fi
