#!/bin/sh
# Puts what `npm run build` made, and what belongs to it, under a folder as it lies on a host:
#
#   packaging/install.sh DESTDIR
#
# Debian's and RPM's packages are both made by this. The hook goes into libvirt's folder after the installation, by
# `virt-cdp install-hook`, which fills in the configured paths.
set -eu

root=${1:?usage: packaging/install.sh DESTDIR}
cd "$(dirname "$0")/.."

lib=$root/usr/lib/virt-cdp
install -d "$lib/hooks" "$root/usr/bin" "$root/usr/sbin" "$root/etc/virt-cdp/policy.d"
install -m 755 dist/virt-cdp.js dist/virt-cdpd.js dist/virt-cdp-hook.js "$lib"
install -m 644 dist/package.json "$lib"
install -m 755 packaging/after-install.sh "$lib/after-install"
install -m 755 packaging/before-removal.sh "$lib/before-removal"
install -m 755 hooks/qemu "$lib/hooks"
ln -s ../lib/virt-cdp/virt-cdp.js "$root/usr/bin/virt-cdp"
ln -s ../lib/virt-cdp/virt-cdpd.js "$root/usr/sbin/virt-cdpd"
install -D -m 644 packaging/virt-cdp.toml "$root/etc/virt-cdp/virt-cdp.toml"
install -D -m 644 dist/licenses.txt "$root/usr/share/doc/virt-cdp/licenses.txt"
install -D -m 644 packaging/virt-cdpd.service "$root/usr/lib/systemd/system/virt-cdpd.service"
install -D -m 644 packaging/apparmor/virt-cdp "$root/etc/apparmor.d/abstractions/libvirt-qemu.d/virt-cdp"
install -D -m 644 packaging/virt-cdp.bash-completion "$root/usr/share/bash-completion/completions/virt-cdp"
for page in packaging/man/*; do
  install -D -m 644 "$page" "$root/usr/share/man/man${page##*.}/${page##*/}"
done
