#!/bin/sh
# Checks the API's documents: generators for Swagger 2.0 take swagger.json (one makes a client of it), and openapi.json breaks
# nothing that clients of released.json, the document of the last release, rely on. Run `make docs-swagger` after a change of the
# API; whoever makes a release copies openapi.json to released.json.
set -eu
cd "$(dirname "$0")/.."
docs=internal/api/openapi
swagger=$(scripts/tool.sh swagger github.com/go-swagger/go-swagger/cmd/swagger v0.36.7)
oasdiff=$(scripts/tool.sh oasdiff github.com/oasdiff/oasdiff v1.37.0)
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

"$swagger" validate --stop-on-error "$docs/swagger.json"
(cd "$made" && go mod init example.com/generated > go.log 2>&1)
"$swagger" generate client --quiet --spec "$docs/swagger.json" --target "$made"
[ -n "$(ls "$made/client" "$made/models")" ] || { echo "no client was generated from $docs/swagger.json" >&2; exit 1; }
echo "a client was generated from $docs/swagger.json"

"$oasdiff" breaking --fail-on ERR "$docs/released.json" "$docs/openapi.json"
