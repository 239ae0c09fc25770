#!/bin/sh
# Runs the engine's suite and a part of the end-to-end tests against a newer Podman than this machine's own: that of
# Debian trixie, in a root of its own.
#
#   scripts/podman5.sh            make the root if it isn't cached, start its service, test, end it
#   scripts/podman5.sh service    (within) become the service
#
# The root and its image store are kept outside the clone, by content of the recipe. As root only: it mounts.
set -eu

suite=trixie
mirror=${STROMBOLI_TEST_MIRROR:-} # default: where this machine's own packages come from
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=podman,runc,crun,conmon,netavark,aardvark-dns,iptables,nftables,catatonit,uidmap,passt,ca-certificates
recipe="2 $suite $packages"

# own_mirror prints the archive that this machine's apt uses for the distribution itself.
own_mirror() {
  cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2> /dev/null |
    sed -nE 's#^(URIs:|deb( \[[^]]*\])?) *(https?://[^ ]*/debian)/?( .*)?$#\3#p' | head -n 1
}

say() { printf 'podman5: %s\n' "$*" >&2; }

# service: in a mount namespace of its own, becomes the root's Podman.
#   $1 root, $2 its store, $3 directory of the socket and of the tests' files, $4 the cache with the agent CLI, $5 runtime,
#   $6 the user, if not root
service() {
  root=$1 store=$2 shared=$3 cache=$4 runtime=$5 user=${6:-}
  mount --make-rprivate /
  mount --bind "$root" "$root"
  cd "$root"
  # What the tests mount into sandboxes lies at the same path on both sides.
  mkdir -p ".$cache/cli" ".$cache/musl" var/lib/containers old
  mount -t proc proc proc
  mount --rbind /sys sys
  mount --rbind /dev dev
  # Podman's locks lie there; the host's own Podman has the same ones.
  mount -t tmpfs tmpfs dev/shm
  mount -t tmpfs tmpfs run
  mount -t tmpfs tmpfs tmp
  mount --bind "$store" var/lib/containers
  mkdir -p ".$shared"
  mount --bind "$shared" ".$shared"
  for part in cli musl; do
    mount --bind "$cache/$part" ".$cache/$part"
    mount -o remount,bind,ro ".$cache/$part"
  done
  # Not chroot: in one the kernel refuses user namespaces.
  pivot_root . old
  umount -l old
  files=$(sed -n 's/^Max open files *[0-9a-z]* *\([0-9]*\).*/\1/p' /proc/self/limits)
  cat > /run/containers.conf << CONF
[containers]
# No more than this process may have itself.
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
[engine]
runtime = "$runtime"
cgroup_manager = "cgroupfs"
events_logger = "file"
exit_command_delay = 10
CONF
  export CONTAINERS_CONF=/run/containers.conf PODMAN_IGNORE_CGROUPSV1_WARNING=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
  if [ -z "$user" ]; then
    exec podman system service -t 0 "unix://$shared/podman.sock"
  fi
  # An ordinary user with ranges of subordinate ids, and with a store that is lost with the root's /tmp.
  mount -t tmpfs tmpfs /home
  grep -q "^$user:" /etc/passwd || useradd --no-create-home --home-dir "/home/$user" --uid 4711 "$user"
  mkdir -p "/home/$user" "/run/user/4711" "$shared/user"
  printf '%s:100000:65536\n' "$user" | tee /etc/subuid > /etc/subgid
  chown "$user:" "/home/$user" "/run/user/4711" "$shared/user"
  chmod 644 /run/containers.conf
  cd /
  HOME=/home/$user XDG_RUNTIME_DIR=/run/user/4711 exec setpriv --reuid "$user" --regid "$user" --clear-groups \
    podman system service -t 0 "unix://$shared/user/podman.sock"
}

if [ "${1:-}" = service ]; then
  shift
  service "$@"
fi

if [ "$(id -u)" -ne 0 ]; then
  say "skipped: only root can give another Podman a root of its own here"
  exit 0
fi

cache=${STROMBOLI_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/stromboli}
key=$(printf %s "$recipe" | sha256sum | cut -c1-16)
dir=$cache/podman5/$key
mkdir -p "$dir/store" "$cache/cli" "$cache/musl"

# One at a time: two services must not share a store.
exec 9> "$dir/lock"
flock 9

if [ ! -d "$dir/root" ]; then
  if [ ! -r "$keyring" ]; then
    say "the package debian-archive-keyring is missing: the root's packages can't be verified"
    exit 1
  fi
  say "making a root of Debian $suite with its Podman (about a minute, once)"
  rm -rf "$dir/root.new"
  mkdir "$dir/root.new"
  # How this host reaches archives.
  set --
  mirror=${mirror:-$(own_mirror)}
  if [ -z "$mirror" ]; then
    say "no Debian archive is configured on this machine: name one in STROMBOLI_TEST_MIRROR"
    exit 1
  fi
  options=$(apt-config dump Acquire | grep -iE '(::proxy|::check-valid-until|::check-date) ' | grep -v ' "";' || true)
  while IFS= read -r line; do
    [ -z "$line" ] || set -- "$@" "--aptopt=${line%;}"
  done << OPTIONS
$options
OPTIONS
  mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' "$@" \
    "$suite" - "deb [signed-by=$keyring] $mirror $suite main" 9>&- |
    tar -C "$dir/root.new" --exclude='./dev/*' -xf -
  [ -x "$dir/root.new/usr/bin/podman" ]
  mv "$dir/root.new" "$dir/root"
fi

# Short: unix sockets lie below it.
shared=$(mktemp -d /tmp/sp5.XXXXXX)
chmod 755 "$shared"
pid=
finish() {
  if [ -n "$pid" ]; then
    kill "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
    pid=
  fi
}
trap 'finish; rm -rf "$shared"' EXIT
trap 'exit 130' INT TERM

# start: runs the service with the given OCI runtime, as root or as the user named second.
start() {
  finish
  socket=$shared${2:+/user}/podman.sock
  rm -f "$socket"
  unshare -m sh "$0" service "$dir/root" "$dir/store" "$shared" "$cache" "$1" "${2:-}" > "$shared/log" 2>&1 9>&- &
  pid=$!
  tries=0
  until CONTAINER_HOST=unix://$socket podman --remote version > /dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ] || ! kill -0 "$pid" 2> /dev/null; then
      say "the service doesn't answer:"
      cat "$shared/log" >&2
      exit 1
    fi
    sleep 0.1
  done
}

start runc
version=$(CONTAINER_HOST=unix://$socket podman --remote version --format '{{.Server.Version}}')
case $version in
  5.*) ;;
  *)
    say "this is podman $version, not 5"
    exit 1
    ;;
esac
say "podman $version, runc"
export STROMBOLI_TEST_HOST="unix://$socket" STROMBOLI_TEST_HOST_VERSION="$version"
export TMPDIR="$shared/t" STROMBOLI_TEST_ROOT="$shared"
mkdir -m 1777 "$TMPDIR"
go test -count=1 ./internal/engine/podman -run '^TestHosted$'
go test -count=1 ./e2e -timeout 5m -run "^(${E2E:-TestRunWritesIntoVolume|TestIsolation|TestOwnership|TestNetwork|TestForeignImage|TestCancelSurvivesKill|TestEngineSecrets})\$"

say "podman $version, runc, rootless"
start runc tester
STROMBOLI_TEST_HOST=unix://$socket go test -count=1 ./internal/engine/podman -run '^TestHosted$'

if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  say "podman $version, crun"
  start crun
  go test -count=1 ./internal/engine/podman -run '^TestHosted$'
else
  say "crun: not tested, it refuses this machine's cgroups (v1 or hybrid)"
fi
