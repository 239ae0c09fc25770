#!/bin/sh
# Builds the image of the server in a container from bin/stromboli: scripts/server-image.sh [name]
set -eu
cd "$(dirname "$0")/.."
name=${1:-localhost/stromboli:latest}
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp bin/stromboli "$context/stromboli"
for file in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
  if [ -n "$file" ] && [ -r "$file" ]; then
    cp -L "$file" "$context/ca-certificates.crt"
    break
  fi
done
podman build -q --layers=false -t "$name" -f images/server/Containerfile "$context" > /dev/null
echo "built $name"
