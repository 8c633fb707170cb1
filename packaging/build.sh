#!/bin/sh
# `npm run package`: makes the DEB and the RPM into dist/packages/, with the distributions' own tools. Whatever npm
# brings is bundled into the programs, so an installation asks no registry.
set -eu
cd "$(dirname "$0")/.."

fail() {
  echo "build.sh: $*" >&2
  exit 1
}

for tool in dpkg-buildpackage dh rpmbuild; do
  command -v $tool >/dev/null || fail "$tool is missing. On Debian: apt-get install dpkg-dev debhelper rpm"
done

version=$(node -p 'require("./package.json").version')
[ "$(dpkg-parsechangelog -l packaging/debian/changelog -S Version)" = "$version" ] ||
  fail "packaging/debian/changelog does not begin with version $version of package.json"

npm run --silent build
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/virt-cdp
mkdir -p "$tree" dist/packages
cp -R hooks packaging LICENSE README.md "$tree"
mkdir "$tree/dist"
cp dist/*.js dist/package.json dist/licenses.txt "$tree/dist"
mv "$tree/packaging/debian" "$tree/debian"

(cd "$tree" && dpkg-buildpackage --build=binary --no-sign >"$work/deb.log" 2>&1) || { cat "$work/deb.log" >&2; fail 'the DEB failed'; }
rpmbuild -bb --quiet --build-in-place --define "version $version" --define "_topdir $work/rpm" \
  --define "_rpmdir $work" "$tree/packaging/rpm/virt-cdp.spec" >"$work/rpm.log" 2>&1 || { cat "$work/rpm.log" >&2; fail 'the RPM failed'; }

for package in "$work"/*.deb "$work"/*/*.rpm; do
  mv "$package" dist/packages/
  echo "dist/packages/${package##*/}"
done
