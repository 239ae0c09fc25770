#!/bin/sh
# Puts cargo, and the libraries that it needs and nothing else, into a directory of its own for the end-to-end test of
# package managers: scripts/test-cargo.sh DIRECTORY. From the distribution's packages, unpacked without being
# installed: a compiler, which they depend on, is not fetched. With the directory there it does nothing.
set -eu
to=$1
[ -e "$to/usr/bin/cargo" ] && exit 0
arch=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
packages() {
  direct=$(apt-cache show --no-all-versions cargo | sed -n 's/^Depends: //p' | tr ',' '\n' | sed 's/|.*//; s/(.*)//; s/ //g' |
    grep -Ev '^(rustc.*|binutils|gcc|clang|c-compiler)$')
  # shellcheck disable=SC2086 # a list of words
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances $direct |
    grep -E '^[a-z0-9]' | grep -v ':' | sort -u
  echo cargo
}
list=$(packages)
[ "$(printf '%s\n' "$list" | wc -l)" -gt 5 ] # without package lists nothing is known
# shellcheck disable=SC2086
apt-get -qq -o APT::Sandbox::User=root download $list
mkdir root
for deb in *.deb; do
  dpkg-deb -x "$deb" root
done
rm -rf root/usr/share root/etc root/var
mkdir -p "$(dirname "$to")"
chmod -R go+rX root
if ! mv -T root "$to" 2> /dev/null; then # somebody else was first
  [ -e "$to/usr/bin/cargo" ]
fi
echo "cargo for $arch in $to" >&2
