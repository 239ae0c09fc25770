#!/bin/sh
# Runs a command; where this user's engine can enforce no limits, it permits that first and says so.
#
# Rootless podman on cgroup v1 enforces no memory, cpu or pids limit, and the server refuses runs there unless it is told
# that this is known.
set -eu
if [ "$(id -u)" -ne 0 ] && [ -z "${CONTAINER_HOST:-}" ] && [ ! -f /sys/fs/cgroup/cgroup.controllers ] &&
  [ -z "${STROMBOLI_RESOURCES_ALLOW_UNENFORCED:-}" ]; then
  echo "note: rootless on cgroup v1: memory, cpu and pids limits are not enforced here; each run carries a warning" >&2
  echo "      (STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true is set for this command)" >&2
  STROMBOLI_RESOURCES_ALLOW_UNENFORCED=true
  export STROMBOLI_RESOURCES_ALLOW_UNENFORCED
fi
exec "$@"
