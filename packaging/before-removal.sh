#!/bin/sh
# Run by the packages before they are removed for good. Without the agent nobody acts when a copy fails, and without the
# hook libvirt may start a stale one: so not while anything is protected.
set -eu

hook=/etc/libvirt/hooks/qemu.d/50-virt-cdp
store=$(sed -n "s/^store='\(.*\)'$/\1/p" "$hook" 2>/dev/null) || store=
for record in "${store:-/var/lib/virt-cdp}"/domains/*.json; do
  [ -e "$record" ] || continue
  echo 'virt-cdp: domains are protected; they would be left with nobody to look after their copies.' >&2
  echo 'Type: virt-cdp list --all, then virt-cdp unprotect DOMAIN for each, and remove the package again.' >&2
  exit 1
done
rm -f "$hook"
local=/etc/apparmor.d/local/abstractions/libvirt-qemu
[ ! -f "$local" ] || sed -i '/# virt-cdp$/d' "$local"
