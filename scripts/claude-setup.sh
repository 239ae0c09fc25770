#!/bin/sh
# Copies the token of the Claude CLI's login into ./.claude-secrets (0600, ignored by git), for
# STROMBOLI_AGENT_SECRETS_FILE.
set -eu
from=${STROMBOLI_AGENT_CREDENTIALS_FILE:-$HOME/.claude/.credentials.json}
to=.claude-secrets
if [ ! -r "$from" ]; then
  echo "claude-setup: $from is not there: log in with the Claude CLI first, or write a token into $to yourself" >&2
  exit 1
fi
# The file's one access token; no JSON tool is needed for a value without escapes.
token=$(tr -d '\n' < "$from" | sed -n 's/.*"accessToken"[[:space:]]*:[[:space:]]*"\([^"\\]*\)".*/\1/p')
if [ -z "$token" ]; then
  echo "claude-setup: $from holds no access token" >&2
  exit 1
fi
umask 077
tmp=$(mktemp "$to.XXXXXX")
printf '%s\n' "$token" > "$tmp"
mv "$tmp" "$to"
echo "claude-setup: wrote $to; use it with STROMBOLI_AGENT_SECRETS_FILE=$PWD/$to" >&2
